# SPDX-License-Identifier: GPL-2.0-or-later
"""One run over all archives at a place, those first that were kept least recently: so a run that is
stopped, or ends by its limit of time, is taken up by the next where it was.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from backup_vm import stopping
from backup_vm.archive.storage import is_remote
from backup_vm.archive.storage.finding import Found, Tree, find, location, open_tree
from backup_vm.errors import NoArchiveError, SparsebakError
from backup_vm.jobs.keep_rules import Rules
from backup_vm.jobs.upkeep.keeping import Task, keep
from backup_vm.jobs.upkeep.memory import Memory, folder_for
from backup_vm.jobs.upkeep.plan import Setup
from backup_vm.rate import Rate
from backup_vm.reporting.kept_rows import KeptRow, State, UpkeepRow, blank, exit_code
from backup_vm.terminal.progress import Progress
from common.existing import is_dir


@dataclass(frozen=True)
class Audience:
    """Who is told: ``begins`` gives the progress of an archive, by its number, of how many, and its
    name; ``ended`` gets its row.
    """

    begins: Callable[[int, int, str], Progress]
    ended: Callable[[KeptRow], None]


def upkeep(setup: Setup, audience: Audience, dry_run: bool = False) -> UpkeepRow:
    """Keep all archives beneath the place. Raises NoArchiveError where there is none, and never was
    one, LockedError where another run is at it, SparsebakError where nothing can be begun.
    """
    _copy_must_be_there(setup.copy_to)
    tree = open_tree(setup.place)
    found = find(tree, setup.place, setup.ignored)
    memory = Memory(folder_for(setup.place))
    if not found.archives and not memory.rows:
        raise NoArchiveError(
            f"there is no archive beneath {setup.place}",
            "; ".join(found.problems) or "name the folder that archives are in",
        )
    if dry_run:
        return _Run(setup, audience, tree, found, memory, dry_run).run()
    with memory.alone():
        return _Run(setup, audience, tree, found, memory, dry_run).run()


def _copy_must_be_there(place: str) -> None:
    """Where a disk is not mounted, copies would fill the one below."""
    if place and not is_remote(place) and not is_dir(Path(place)):
        raise SparsebakError(
            f"{place}, where copies are to be, is no folder", "mount its disk, or make the folder"
        )


class _Run:
    def __init__(
        self,
        setup: Setup,
        audience: Audience,
        tree: Tree,
        found: Found,
        memory: Memory,
        dry_run: bool,
    ) -> None:
        self._setup, self._audience, self._tree = setup, audience, tree
        self._found, self._memory, self._dry_run = found, memory, dry_run
        self._names = {name or ".": name for name in found.archives}
        self._problems = list(found.problems)
        self._rate = Rate(setup.limit_rate) if setup.limit_rate else Rate()
        self._begun = time.monotonic()
        self._rows: dict[str, KeptRow] = {}

    def run(self) -> UpkeepRow:
        """Keep what is due, and tell how it is with all."""
        begun, before = int(time.time()), self._memory.rows
        due = sorted(
            self._names, key=lambda name: (before[name]["kept"] if name in before else 0, name)
        )
        for number, name in enumerate(due):
            if self._late() or not self._one(number, len(due), name):
                break
        for name in due:  # who held one may be done by now
            if (
                name in self._rows
                and self._rows[name]["state"] == State.IN_USE
                and not self._late()
            ):
                self._rows[name] = self._keep(len(due) - 1, len(due), name, self._rows[name])
        for row in self._rows.values():
            if row["state"] == State.IN_USE:
                self._end(row)
        for name in (*due, *before):
            if name not in self._rows:
                self._rows[name] = self._other(name)
        rows = [self._rows[name] for name in sorted(self._rows) if not self._gone(name)]
        return {
            "place": self._setup.place,
            "dry_run": self._dry_run,
            "archives": rows,
            "problems": self._problems,
            "begun": begun,
            "ended": int(time.time()),
            "exit": int(exit_code(rows, self._problems)),
        }

    def _late(self) -> bool:
        limit = self._setup.time_limit
        return limit is not None and time.monotonic() - self._begun >= limit

    def _one(self, number: int, total: int, name: str) -> bool:
        """Keep one; False when the place cannot be reached any more: the others are left."""
        row = self._rows[name] = self._keep(number, total, name)
        if row["state"] != State.IN_USE:
            self._end(row)
        if row["state"] != State.FAILED or not is_remote(self._setup.place):
            return True
        try:
            list(self._tree.look([""]))
        except SparsebakError as error:
            self._problems.append(f"the others were left: {error}")
            return False
        return True

    def _keep(self, number: int, total: int, name: str, tried: KeptRow | None = None) -> KeptRow:
        """Keep one; ``tried``: how far this run came with it when it was in use."""
        stopping.check()
        setup, before = self._setup, self._memory.rows.get(name)
        folder = self._names[name]
        row = blank(name, location(setup.place, folder))
        if before is not None:
            row["kept"], row["skipped"] = before["kept"], before["skipped"]
        plan = setup.plan_of(name)
        if tried is not None:
            row["notes"] = list(tried["notes"])
        if tried is not None and tried["removed"]:
            # Not twice: sessions that took over what went are new to the guard now, and push none
            # out; what stayed because of them would go.
            plan = replace(plan, rules=Rules())
            row["removed"], row["freed"] = tried["removed"], tried["freed"]
        target = location(setup.copy_to, folder) if setup.copy_to else ""
        task = Task(row["location"], plan, target, self._rate, self._dry_run)
        progress = self._audience.begins(number, total, name)
        try:
            keep(task, row, progress)
        finally:
            progress.stop()
        return row

    def _end(self, row: KeptRow) -> None:
        if not self._dry_run:
            try:
                self._memory.note(row)
            except OSError as error:  # a full disk here keeps no archive elsewhere from being kept
                text = f"cannot be remembered on this machine ({error.strerror}): {self._memory}"
                self._tell_once(f"when archives were kept {text}; make room there")
        self._audience.ended(row)

    def _tell_once(self, problem: str) -> None:
        if problem not in self._problems:
            self._problems.append(problem)

    def _other(self, name: str) -> KeptRow:
        """An archive that this run did not come to, or that is not there."""
        row = self._memory.rows.get(name) or blank(name, location(self._setup.place, name))
        row = {**row, "state": str(State.LEFT)}
        if name not in self._names and not self._gone(name):
            closed = next((one for one in _upwards(name) if one in self._found.closed), None)
            if closed is None:
                text = "it was here the last time, and is not there any more"
                text += "; if that is meant, add its name to ignore"
            else:
                text = f"it was here the last time, and {closed} cannot be looked into now"
            row |= {"state": str(State.MISSING), "problems": [text]}
            self._audience.ended(row)
        return row

    def _gone(self, name: str) -> bool:
        """Whether an archive is not there and need not be."""
        there, ignored = name in self._names, self._setup.ignored
        gone = not there and any(one in ignored for one in _upwards(name))
        if gone and not self._dry_run:
            with suppress(OSError):  # it is forgotten by a later run
                self._memory.forget(name)
        return gone


def _upwards(name: str) -> Iterator[str]:
    """The name of a folder, and of each that it is in."""
    parts = name.split("/")
    for upto in range(len(parts), 0, -1):
        yield "/".join(parts[:upto])
