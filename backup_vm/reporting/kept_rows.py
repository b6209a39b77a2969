# SPDX-License-Identifier: GPL-2.0-or-later
"""What upkeep tells of each archive, and of all: what ``--json`` prints, and what the page, the
metrics and the lines on a terminal are made of. Times are Unix seconds, sizes bytes.
"""

from enum import StrEnum
from typing import TypedDict

from backup_vm.errors import Exit
from backup_vm.reporting.rows import StatusRow
from backup_vm.terminal.text import count_text, size_text
from common.text import session_name


class State(StrEnum):
    """How it is with an archive."""

    WELL = "well"
    WARNED = "look at it"
    """All was done, and something is to be looked at: no new session, say."""
    DAMAGED = "damaged"
    FAILED = "failed"
    IN_USE = "in use"
    """Another run holds it: it is kept the next time."""
    MISSING = "missing"
    """It was there the last time, and is not, or cannot be seen."""
    LEFT = "left"
    """This run did not come to it."""


class KeptRow(TypedDict):
    """How an archive was kept, or would be."""

    name: str
    """Of its folder, relative to the place; ``.`` for the place itself."""
    location: str
    label: str
    id: str
    state: str
    problems: list[str]
    notes: list[str]
    kept: int
    """When it was kept last, whole; 0: never."""
    skipped: int
    """Times in a row that it was in use."""
    sessions: int
    newest: int | None
    removed: int
    freed: int
    scrubbed: int
    """Packs that were scrubbed, ``of`` so many."""
    of: int
    copied: int | None
    """Sessions that were copied; None where none are to be."""
    sent: int
    status: StatusRow | None
    """The archive at a glance, without its volumes."""


class UpkeepRow(TypedDict):
    """A whole run."""

    place: str
    dry_run: bool
    archives: list[KeptRow]
    problems: list[str]
    begun: int
    ended: int
    exit: int


def blank(name: str, location: str) -> KeptRow:
    """An archive of which nothing is known yet."""
    return {
        "name": name,
        "location": location,
        "label": "",
        "id": "",
        "state": str(State.LEFT),
        "problems": [],
        "notes": [],
        "kept": 0,
        "skipped": 0,
        "sessions": 0,
        "newest": None,
        "removed": 0,
        "freed": 0,
        "scrubbed": 0,
        "of": 0,
        "copied": None,
        "sent": 0,
        "status": None,
    }


def exit_code(rows: list[KeptRow], problems: list[str]) -> Exit:
    """4 where anything is damaged, 1 where anything else is not as it should be, else 0."""
    if any(row["state"] == State.DAMAGED for row in rows):
        return Exit.DAMAGED
    good = {State.WELL, State.IN_USE, State.LEFT}
    if problems or any(row["problems"] or row["state"] not in good for row in rows):
        return Exit.FAILED
    return Exit.OK


def line(row: KeptRow, dry_run: bool) -> str:
    """An archive in one line."""
    words = [f"{row['name']}: {row['state']}"]
    if row["state"] in (State.WELL, State.WARNED, State.DAMAGED) and row["label"]:
        newest = "none" if row["newest"] is None else session_name(row["newest"])
        would = "to be " * dry_run
        words.append(f"newest session {newest}")
        words.append(f"{count_text(row['sessions'], 'session')} left")
        words.append(f"{row['removed']} {would}removed")
        if row["freed"]:
            words.append(f"{size_text(row['freed'])} {would}freed")
        if row["of"]:
            words.append(f"{row['scrubbed']} of {row['of']} packs {would}scrubbed")
        if row["copied"] is not None:
            words.append(f"{row['copied']} {would}copied, {size_text(row['sent'])} sent")
    return ", ".join(words)
