# SPDX-License-Identifier: GPL-2.0-or-later
"""Removing sessions that were chosen, or only saying what that would do."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from backup_vm.archive.archive import Archive
from backup_vm.archive.incomplete import incomplete, text
from backup_vm.archive.prune import Pruned, prune
from backup_vm.archive.sessions import Session
from backup_vm.archive.space import Account
from backup_vm.jobs.keep_rules import duration_text
from backup_vm.jobs.thinning import Verdict, held
from backup_vm.reporting.locks import lock_row
from backup_vm.terminal.text import count_text, size_text, table, waiting_text
from backup_vm.volumes import Named


class Removal(NamedTuple):
    """Sessions that go, each with its volume. ``volumes``: all that there are; ``verdicts``: those
    of the rules by which they were chosen, if rules did it; ``entirely``: ids of volumes of which
    nothing is to stay, damaged sessions included.
    """

    archive: Archive
    volumes: Sequence[Named]
    doomed: Sequence[tuple[Named, Session]]
    verdicts: Sequence[Verdict] | None = None
    entirely: frozenset[str] = frozenset()
    min_age: int = 0
    """Seconds for which the rules let new sessions stay."""

    def question(self) -> str:
        """What to ask before it is done."""
        names = {volume.name for volume, _ in self.doomed}
        where = next(iter(names)) if len(names) == 1 else count_text(len(names), "volume")
        sessions = count_text(len(self.doomed), "session")
        return f"Remove {sessions} of {where}? This cannot be undone."

    def spoilt(self) -> list[str]:
        """Lines about the volumes of which sessions go: which of these, and which of those that
        stay, are known not to be whole. That the newest one is not may be why an older one is
        wanted.
        """
        volumes = {volume.id: volume for volume, _ in self.doomed}
        found = incomplete(self.archive, {id: one.series for id, one in volumes.items()})
        doomed = {session.file for _, session in self.doomed}
        lines: list[str] = []
        for one in volumes.values():
            goes = [session for session in one.sessions if session.file in doomed]
            stays = [session for session in one.sessions if session.file not in doomed]
            lines += text(f"{one.name}, what is to be removed", goes, found)
            lines += text(f"{one.name}, what is left", stays, found)
        return lines

    def foreseen(self) -> Pruned:
        """What ``run`` would do; as for chunks, nobody counted them."""
        account = Account(self.archive, {volume.id: volume.series for volume in self.volumes})
        files = {session.file for _, session in self.doomed}
        return Pruned(len(self.doomed), 0, account.comes_back(files))

    def held(self) -> list[str]:
        """What is to be said of volumes that the guard left as they are."""
        return held(self.verdicts or ())

    def spared(self) -> int:
        """How many sessions stay for their age alone, or for that of those that push them out."""
        return sum(verdict.spared for verdict in self.verdicts or ())

    def _spared_lines(self) -> list[str]:
        if not (count := self.spared()):
            return []
        sessions, age = count_text(count, "session"), duration_text(self.min_age)
        return [
            f"{sessions} that no rule keeps {'stays' if count == 1 else 'stay'} for now: nothing"
            f" newer than {age} goes, or pushes others out (--min-age)."
        ]

    def run(self) -> Pruned:
        """Do it; raise DamagedError if none of them can go."""
        return prune(self.archive, [session for _, session in self.doomed], self.entirely)

    def row(self, done: Pruned, dry_run: bool) -> dict[str, Any]:
        """What was done, or would be, as --json prints it."""
        removed = [_row(volume, session) for volume, session in self.doomed]
        row = {
            "removed": removed,
            "dry_run": dry_run,
            "chunks": done.chunks,
            "freed": done.space,
            "waiting": done.waiting,
            "waiting_until": done.until or None,
        }
        plan = [self._verdict_row(verdict) for verdict in self.verdicts or ()]
        row |= {"plan": plan} if plan else {}
        if dry_run:
            row["lock"] = lock_row(self.archive)
        return row | {"held": self.held(), "spared": self.spared(), "min_age": self.min_age}

    def _verdict_row(self, verdict: Verdict) -> dict[str, Any]:
        """A verdict. ``spared_until``: when a session that stays for its own age alone is old
        enough to go; None where it stays for anything else.
        """
        until = verdict.session.clear.time + self.min_age
        return {
            **_row(verdict.volume, verdict.session),
            "keep": verdict.keep,
            "why": list(verdict.why),
            "spared": verdict.spared,
            "spared_until": until if verdict.spared and until > time.time() else None,
        }

    def plan(self, foreseen: Pruned) -> list[str]:
        """What would be done, for people."""
        if self.verdicts is not None:
            lines = [_table(self.verdicts)]
        else:
            lines = [f"would remove {volume.name} {s.name}" for volume, s in self.doomed]
        sessions = count_text(foreseen.sessions, "session")
        when = " when their locks have run out" if self.archive.parameters.retention else ""
        lines.append(f"{sessions} would be removed, {size_text(foreseen.space)} freed{when}.")
        return lines + self._spared_lines()

    def report(self, done: Pruned) -> list[str]:
        """What was done, for people."""
        left = set(self.archive.session_files())
        lines = [
            f"removed {volume.name} {session.name}"
            for volume, session in self.doomed
            if session.file not in left
        ]
        sessions = count_text(done.sessions, "session")
        lines.append(f"{sessions} removed, {size_text(done.space)} freed.")
        lines += waiting_text(done.waiting, done.until)
        return lines + self._spared_lines()


def _row(volume: Named, session: Session) -> dict[str, Any]:
    return {"qube": volume.qube, "volume": volume.volume, "session": session.name}


def _table(verdicts: Sequence[Verdict]) -> str:
    rows = [
        [
            v.volume.name,
            v.session.name,
            "keep" if v.keep else "remove",
            ", ".join(v.why) or "no rule keeps it",
        ]
        for v in verdicts
    ]
    return table([["VOLUME", "SESSION", "", "WHY"], *rows])
