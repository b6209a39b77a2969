# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``--json`` prints of volumes, sessions and checks, and what pages and tables are made of.

Times are Unix seconds, sizes bytes, ids hexadecimal.
"""

from typing import TypedDict

from backup_vm.archive.notes import Check
from backup_vm.archive.space import Use
from common.text import session_name


class CheckRow(TypedDict):
    """When something was scrubbed or verified, and whether it was sound."""

    time: int
    ok: bool


class SpaceRow(TypedDict):
    """What a volume takes up; ``own`` to ``deduplication`` are None where no account of the space
    was made, or a session could not be read for it. ``own`` and ``shared`` are of chunks alone.
    """

    own: int | None
    shared: int | None
    compression: float | None
    deduplication: float | None
    names: int
    """Bytes of the indexes of names of its sessions."""


class SessionRow(TypedDict):
    """A session, as ``list`` shows it."""

    session: str
    id: str
    sequence: int
    time: int
    size: int
    changed: int
    full: bool
    frees: int | None
    """Bytes that pruning it would give back."""
    tags: list[str]
    note: str
    verified: CheckRow | None
    spoilt: str | None
    """Why it is known not to be whole, if it is."""


class VolumeRow(SpaceRow):
    """A volume and its sessions, as ``list`` shows it. ``qube`` is empty where the name is sealed,
    and ``volume`` the volume's id then.
    """

    qube: str
    volume: str
    id: str
    verified: CheckRow | None
    sessions: list[SessionRow]


class DrillRow(CheckRow):
    """The last drill of any volume."""

    name: str


class StateRow(SpaceRow):
    """A volume at a glance, as ``status`` shows it; perhaps one that has no session yet."""

    name: str
    id: str
    latest: str | None
    time: int | None
    """Of the newest session."""
    sessions: int
    spoilt: int
    """How many of them are known not to be whole."""
    size: int
    changed: int | None
    """Bytes that changed since, as dom0 tells; None where it does not know the volume."""
    verified: CheckRow | None
    drilled: CheckRow | None
    note: str


class UnscrubbedRow(TypedDict):
    """How far scrubs of parts have come."""

    oldest: int | None
    """Time of the oldest last check of a pack; None where none was checked."""
    never: int
    """Bytes of packs that were never checked."""


class UnprovenRow(TypedDict):
    """The session that was not proven for longest."""

    name: str
    session: str
    since: int
    """Time of its last verification; where there was none, of the session."""
    verified: bool


class LockRow(TypedDict):
    """How an archive with a retention is locked, as far as this machine knows."""

    retention: int
    """Seconds."""
    until: int | None
    """The first date that comes."""
    last: int | None
    """The last one."""
    unknown: int
    """Files of which no date is known."""
    late: bool
    """Whether less than half of the retention is left of any file, or that is not known."""
    waiting: int
    """Bytes that were removed or replaced, and that may not be removed for good yet."""
    waiting_until: int | None


class LeaseRow(TypedDict):
    """A lease that another run holds; what it says of itself is its own word."""

    kind: str
    """``writer``, or ``notes`` of one that changes these."""
    host: str
    process: int
    """0 where the lease says nothing that can be read."""
    command: str
    since: int | None
    """When that run began, by its machine's clock."""
    renewed: int
    """When it was renewed last, by the store's clock."""


class StatusRow(TypedDict):
    """The archive at a glance."""

    path: str
    label: str
    id: str
    mode: str
    chunk_size: int
    chunks: int
    stored: int
    parity: int
    """Bytes of parity files."""
    parity_files: int
    names: int
    """Bytes of indexes of names."""
    names_files: int
    free: int | None
    capacity: int | None
    """Bytes of the whole disk; None where it has no such number."""
    scrubbed: CheckRow | None
    part_scrubbed: CheckRow | None
    unscrubbed: UnscrubbedRow
    unproven: UnprovenRow | None
    drilled: DrillRow | None
    lock: LockRow | None
    leases: list[LeaseRow]
    next_run: str | None
    volumes: list[StateRow]
    problems: list[str]


def row_name(row: VolumeRow) -> str:
    """The volume, for people."""
    return f"{row['qube']}/{row['volume']}" if row["qube"] else row["volume"]


def check_row(check: Check | None) -> CheckRow | None:
    """A check; None where there was none."""
    return None if check is None else {"time": check.time, "ok": check.sound}


def check_text(row: CheckRow | None) -> str:
    """A check for people."""
    if row is None:
        return "never"
    return session_name(row["time"]) + ("" if row["ok"] else ", damage found")


def space_row(use: Use | None, names: int) -> SpaceRow:
    """What a volume takes up. ``names``: bytes of its indexes of names."""
    return {
        "own": use.own if use else None,
        "shared": use.shared if use else None,
        "compression": round(use.compression, 3) if use else None,
        "deduplication": round(use.deduplication, 3) if use else None,
        "names": names,
    }
