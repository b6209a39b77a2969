# SPDX-License-Identifier: GPL-2.0-or-later
"""Scrubbing an archive, or the part of it whose turn it is, and noting what was looked at."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from backup_vm.archive import notes, noting
from backup_vm.archive.archive import Archive
from backup_vm.archive.scrub import Finding, Repair, scrub
from backup_vm.errors import DamagedError
from backup_vm.jobs import known_damage
from backup_vm.jobs.sampling import due, packs_to_check
from backup_vm.quantities import Part
from backup_vm.terminal.progress import Progress


@dataclass(frozen=True)
class Scrubbed:
    """What was found; ``looked_at`` and ``there`` are packs, ``opened`` the session files that the
    opening of the archive found spoilt, with the reason.
    """

    findings: list[Finding]
    opened: dict[str, str]
    looked_at: Sequence[str]
    there: Sequence[str]
    outside: list[str] = field(default_factory=list)
    """What was known to be damaged before, outside of the part that was looked at."""
    unnoted: str | None = None
    """Why it could not be noted in the archive; None if it was."""

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged, as far as was looked."""
        return not self.findings and not self.opened

    def problems(self) -> list[str]:
        """A line for each finding, for people."""
        return [
            f.problem + (f"; spoils {', '.join(f.sessions)}" if f.sessions else "")
            for f in self.findings
        ]

    def damaged(self) -> list[dict[str, Any]]:
        """All that is damaged, as --json prints it."""
        rows: list[dict[str, Any]] = [
            {"file": f.file, "problem": f.problem, "sessions": list(f.sessions)}
            for f in self.findings
        ]
        known = {finding.file for finding in self.findings}
        return rows + [
            {"file": file, "problem": reason, "sessions": [file]}
            for file, reason in self.opened.items()
            if file not in known
        ]


def scrub_part(
    archive: Archive,
    progress: Progress,
    part: Part | None,
    older_than: int | None,
    repair: Repair | None = None,
) -> Scrubbed:
    """Scrub everything, or of the packs only those that ``due`` chooses by these, and note in the
    archive what was looked at.
    """
    _look_back(archive)
    chosen = choose(archive, part, older_than)
    findings = archive.looking.steady(
        lambda: list(scrub(archive, progress, chosen, repair)),
        lambda found: {finding.problem for finding in found},
    )
    there = archive.pack_files()
    looked_at = there if chosen is None else chosen
    done = Scrubbed(findings, dict(archive.found), looked_at, there)
    damaged_files = [finding.file for finding in findings]
    rotten = {pack for pack, _ in archive.catalog.rotten()}
    unnoted = noting.scrubbed(archive.storage, done.sound, looked_at, there, damaged_files, rotten)
    _look_back(archive)  # these are the newest there are
    done = replace(done, unnoted=unnoted)
    return done if chosen is None else replace(done, outside=_outside(archive, chosen, findings))


def _look_back(archive: Archive) -> None:
    with suppress(DamagedError, OSError):  # reported by the scrub
        noting.look_back(archive, notes.load(archive.storage))


def choose(archive: Archive, part: Part | None, older_than: int | None) -> list[str] | None:
    """The packs to look at; None for all."""
    if part is None and older_than is None:
        return None
    try:
        found = notes.load(archive.storage)
    except DamagedError:  # reported by the scrub
        found = notes.Notes()
    now = int(time.time())
    candidates = packs_to_check(archive.pack_files(), archive.storage.sizes("packs"), found, now)
    return due(candidates, older_than, part, now)


def _outside(archive: Archive, chosen: list[str], findings: list[Finding]) -> list[str]:
    """What is known to be damaged, outside of this part."""
    said = {file for finding in findings for file in finding.sessions}
    return known_damage.outside(archive, {id: id for id in archive.sessions()}, {*chosen, *said})
