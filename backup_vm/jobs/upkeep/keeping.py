# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeping one archive: prune, scrub, look, copy, each as its own command does it, and no key.

What is wrong with it ends in its row: one archive that is damaged, of another version or hostile
keeps no other from being kept.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from backup_vm import stopping
from backup_vm.archive import catalog_file, noting
from backup_vm.archive.archive import Archive
from backup_vm.archive.opening import open_archive
from backup_vm.archive.prune import Pruned
from backup_vm.archive.storage import is_remote
from backup_vm.config import Pruning
from backup_vm.errors import DamagedError, LockedError, SparsebakError
from backup_vm.jobs.copy import copy
from backup_vm.jobs.keep_rules import AHEAD, duration_text
from backup_vm.jobs.removal import Removal
from backup_vm.jobs.scrubbing import choose, scrub_part
from backup_vm.jobs.thinning import judge
from backup_vm.jobs.upkeep.plan import Plan
from backup_vm.rate import Rate
from backup_vm.reporting import status
from backup_vm.reporting.kept_rows import KeptRow, State
from backup_vm.terminal.interrupts import came
from backup_vm.terminal.progress import Progress
from backup_vm.terminal.text import count_text
from backup_vm.volumes import Contents, stored_volumes
from common.text import printable, session_name

COMMAND = "upkeep"
OFTEN = 3
"""Times in a row that an archive is in use before that is a problem: whoever holds it for ever
keeps it from being pruned and scrubbed.
"""
_MOST = 20
"""Lines that an archive gets: what is in it is its owner's choice."""


@dataclass(frozen=True)
class Task:
    """What is to be done: ``location`` of the archive; ``copy_to``: of its copy, or empty."""

    location: str
    plan: Plan
    copy_to: str
    rate: Rate
    dry_run: bool


def keep(task: Task, row: KeptRow, progress: Progress) -> None:
    """Do it, and say in the row what came of it; raise KeyboardInterrupt alone.

    The lease is held while it is pruned and scrubbed, not while it is copied: whoever backs up into
    it need not wait for a second place.
    """
    with _told(row):
        _must_be_there(task)
        writing = False if task.dry_run else True if task.plan.rules.any() else None
        with _opened(task, row, writing) as archive:
            row["label"], row["id"] = archive.parameters.label, archive.parameters.archive.hex()
            _prune(archive, task, row)
            if task.plan.scrub:
                _scrub(archive, task, row, progress)
            _look(archive, task.plan, row)
            row["notes"] += archive.warnings
        if task.copy_to and task.plan.copy:
            _copy(task, row, progress)
    row["notes"] = _shown([line for line in row["notes"] if line not in row["problems"]])
    row["problems"] = _shown(row["problems"])
    if row["state"] == State.LEFT:
        row["state"] = str(State.WARNED if row["problems"] else State.WELL)
    if row["state"] in (State.WELL, State.WARNED, State.DAMAGED) and not task.dry_run:
        row["kept"], row["skipped"] = int(time.time()), 0


@contextmanager
def _told(row: KeptRow) -> Iterator[None]:
    """Whatever an archive raises becomes its state and a line."""
    try:
        yield
    except LockedError as error:
        _in_use(row, error)
    except DamagedError as error:
        row["state"] = str(State.DAMAGED)
        row["problems"].append(error.line())
    except SparsebakError as error:
        _failed(row, error.line())
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else row["location"]
        _failed(row, f"{where}: {error.strerror or error}")
    except sqlite3.Error as error:
        found = catalog_file.explain(error, f"the catalog of {row['location']}")
        if isinstance(found, LockedError):
            _in_use(row, found)
        else:
            _failed(row, found.line())
    except Exception as error:
        # A mistake of ours that one archive brings to light: its owner must not be able to keep
        # all others from being kept. A signal may come as one, see ``interrupts``.
        stopping.check()
        if came():
            raise
        text = " ".join(str(error).split())
        _failed(row, f"unexpected error, please report it: {type(error).__name__}: {text}")


def _failed(row: KeptRow, text: str) -> None:
    if row["state"] != State.DAMAGED:
        row["state"] = str(State.FAILED)
    row["problems"].append(text)


def _in_use(row: KeptRow, error: LockedError) -> None:
    if row["state"] != State.DAMAGED:
        row["state"] = str(State.IN_USE)
    row["skipped"] += 1
    if row["skipped"] >= OFTEN:
        row["problems"].append(f"in use {row['skipped']} times in a row: {error}")
    else:
        row["notes"].append(str(error))


def _shown(lines: list[str]) -> list[str]:
    """Lines that can be printed anywhere, each once, not more than can be read."""
    lines = list(dict.fromkeys(lines))
    shown = [printable(" ".join(line.split()))[:1000] for line in lines[:_MOST]]
    if len(lines) > _MOST:
        shown.append(f"and {len(lines) - _MOST} more")
    return shown


def _must_be_there(task: Task) -> None:
    """A folder that was found must not have become a link that leads elsewhere, see ``finding``."""
    if not is_remote(task.location) and os.path.islink(task.location):
        raise SparsebakError(f"{task.location} is a link now", "find out who made it")


@contextmanager
def _opened(task: Task, row: KeptRow, writing: bool | None) -> Iterator[Archive]:
    with open_archive(task.location, writing, COMMAND) as archive:
        archive.storage.rate = task.rate
        yield archive
    if not archive.writing and writing is None and not task.dry_run:
        row["notes"].append("it cannot be written to: nothing found is noted in it")


def _damage(row: KeptRow, lines: list[str]) -> None:
    if lines:
        row["state"] = str(State.DAMAGED)
        row["problems"] += lines


def _prune(archive: Archive, task: Task, row: KeptRow) -> None:
    rules = task.plan.rules
    if not rules.any():
        return
    # Without keys nobody's names are known, of an open archive neither: rules are for all volumes.

    def chosen() -> Removal:
        contents = Contents(archive, None, stored_volumes(archive, None, {}))
        verdicts = judge(contents, contents.volumes, Pruning(), rules, guard=task.plan.guard)
        doomed = [(verdict.volume, verdict.session) for verdict in verdicts if not verdict.keep]
        return Removal(archive, contents.volumes, doomed, verdicts)

    def foreseen() -> tuple[Removal, Pruned]:
        removal = chosen()
        return removal, removal.foreseen()

    try:
        if task.dry_run:  # beside which another machine may change it
            removal, done = archive.looking.steady(foreseen)
        else:
            removal = chosen()
            done = removal.run()
    except DamagedError as error:  # it can be scrubbed and copied all the same
        _damage(row, [error.line()])
        return
    _damage(row, list(done.refused))
    row["problems"] += removal.held()
    row["removed"], row["freed"] = done.sessions, done.space


def _scrub(archive: Archive, task: Task, row: KeptRow, progress: Progress) -> None:
    plan = task.plan
    there = archive.pack_files()
    if task.dry_run:
        chosen = choose(archive, plan.sample, plan.older_than)
        row["scrubbed"], row["of"] = len(there if chosen is None else chosen), len(there)
        return
    done = scrub_part(archive, progress, plan.sample, plan.older_than)
    row["scrubbed"], row["of"] = len(done.looked_at), len(done.there)
    _damage(row, [*done.problems(), *done.outside])
    if archive.writing and done.unnoted is not None:
        # the next run would begin with the same packs, and others never have their turn
        row["problems"].append(noting.line(done.unnoted))


def _look(archive: Archive, plan: Plan, row: KeptRow) -> None:
    """Its age, and what ``status`` would say; the packs that are known to be damaged count until a
    scrub finds them sound.
    """
    found, _ = status.look(archive, [], None, None, False)
    volumes = found["volumes"]
    row["sessions"] = sum(volume["sessions"] for volume in volumes)
    row["newest"] = max((v["time"] for v in volumes if v["time"] is not None), default=None)
    # Of whoever writes there it gets no more than is told, and fits into a note of it.
    row["status"] = {
        **found,
        "volumes": [],
        "next_run": None,
        "problems": _shown(found["problems"]),
        "leases": found["leases"][:_MOST],
    }
    why = archive.found.items()
    _damage(row, [*found["problems"], *(f"{archive.storage.describe(n)}: {t}" for n, t in why)])
    part, whole = found["part_scrubbed"], found["scrubbed"]
    last = max(filter(None, (part, whole)), key=lambda check: check["time"], default=None)
    if last is not None and not last["ok"] and row["state"] != State.DAMAGED:
        _damage(row, ["damage that an earlier scrub found is still there"])
    _age(archive, plan, row)


def _age(archive: Archive, plan: Plan, row: KeptRow) -> None:
    if plan.max_age is None:
        return
    now, newest = int(time.time()), row["newest"]
    since = archive.parameters.created if newest is None else newest
    if since > now + AHEAD:
        text = f"its newest session says {session_name(since)}, which is in the future"
        row["problems"].append(f"{text}: one of the two clocks is wrong")
    elif now - since > plan.max_age:
        what = (
            "it has no session" if newest is None else f"no new session since {session_name(since)}"
        )
        limit = duration_text(plan.max_age)
        row["problems"].append(
            f"{what}: that is {count_text((now - since) // 86400, 'day')}, and more than {limit}"
        )


def _copy(task: Task, row: KeptRow, progress: Progress) -> None:
    """Bring its copy up to date; what is not here any more stays there, for whoever can remove here
    must not thereby remove there.
    """
    row["copied"] = 0
    if task.dry_run:
        return
    with _opened(task, row, False) as archive:
        done = copy(archive, task.copy_to, progress)
    row["copied"], row["sent"] = done.sessions, done.stored
    _damage(row, done.failed)
    if done.unnoted is not None:
        row["notes"].append(f"it could not be noted that there is a copy ({done.unnoted})")
