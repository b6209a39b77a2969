# SPDX-License-Identifier: GPL-2.0-or-later
"""What keeps an archive's files as they are: the store's locks until their dates, and the leases of
runs that are at work.
"""

import time

from backup_vm.archive import holding, lease_files
from backup_vm.archive.archive import Archive
from backup_vm.archive.holder import LONGEST_HOST
from backup_vm.archive.lease import RENEWAL
from backup_vm.archive.lease_files import STALE
from backup_vm.errors import ForbiddenError, SparsebakError
from backup_vm.quantities import days_text
from backup_vm.reporting.rows import LeaseRow, LockRow
from backup_vm.terminal.text import count_text, waiting_text
from common.text import printable, session_name
from wire.layout import LAST_TIME

SILENT = 5 * RENEWAL
"""Seconds without a renewal after which a run may have been cut off."""


def lock_row(archive: Archive) -> LockRow | None:
    """How what is stored is locked; None for an archive without a retention."""
    held = holding.state(archive)
    if held is None:
        return None
    return {
        "retention": held.retention,
        "until": held.until or None,
        "last": held.last or None,
        "unknown": held.unknown,
        "late": held.late(time.time()),
        "waiting": held.waiting,
        "waiting_until": held.waiting_until or None,
    }


def lock_text(row: LockRow | None) -> list[str]:
    """How what is stored is locked, in lines for people."""
    if row is None:
        return []
    until = f", until {session_name(row['until'])} at least" if row["until"] else ""
    unknown = (
        f"; of {count_text(row['unknown'], 'file')} this machine does not know that"
        if row["unknown"]
        else ""
    )
    late = (
        " Less than half is left: run a backup or prune, which lock again." if row["late"] else ""
    )
    return [
        f"Locked for {days_text(row['retention'])}{until}{unknown}.{late}",
        *waiting_text(row["waiting"], row["waiting_until"] or 0),
    ]


def lease_rows(archive: Archive) -> tuple[list[LeaseRow], list[str]]:
    """The leases that other runs hold, and why that is not known. Nothing is written for it: one
    that is free by its age alone is among them.
    """
    storage = archive.storage
    if storage.elsewhere and not storage.writable():  # as it was: of what is now it tells nothing
        return [], []
    try:
        found = lease_files.holders(storage.locks())
    except ForbiddenError:  # nobody can write there
        return [], []
    except (OSError, SparsebakError) as error:
        return [], [f"who writes to it is not known: {error}"]
    rows: list[LeaseRow] = [
        {
            "kind": kind,
            "host": printable(holder.host[:LONGEST_HOST]),
            "process": holder.process if 0 < holder.process < 1 << 32 else 0,
            "command": printable(holder.command[:LONGEST_HOST]),
            "since": holder.since if 0 < holder.since <= LAST_TIME else None,
            "renewed": int(min(max(renewed, 0), LAST_TIME)),
        }
        for kind, holder, renewed in found
    ]
    return sorted(rows, key=lambda row: row["since"] or 0), []


def silent(row: LeaseRow) -> bool:
    """Whether its run may have been cut off, by this machine's clock."""
    return time.time() - row["renewed"] > SILENT


def ahead(row: LeaseRow) -> bool:
    """Whether it keeps others away for longer than the half hour of one whose run is over: by this
    machine's clock it was renewed in the future, for which the store's clock was wrong, or is, or
    somebody set the file's time, or this machine's clock is behind.
    """
    return row["renewed"] - time.time() > STALE


def lease_remedy(row: LeaseRow) -> str:
    """What to do about a lease whose run is over."""
    return "if that run is over: sparsebak unlock; " + (
        f"by itself it is free only half an hour after {session_name(row['renewed'])}, by the"
        " clock of the store: see that its clock, and this machine's, are right"
        if ahead(row)
        else "by itself it is free half an hour after its last renewal"
    )


def lease_line(row: LeaseRow) -> str:
    """That another run holds a lease, and what to do where time alone does not free it soon."""
    line = f"Another run holds its lease: {lease_text(row)}"
    return f"{line}; {lease_remedy(row)}" if ahead(row) else line


def lease_text(row: LeaseRow) -> str:
    """A lease for people."""
    who = f"{row['host']}, process {row['process']}" if row["process"] else "holder unknown"
    what = f" ({row['command']})" if row["command"] else ""
    since = f", since {session_name(row['since'])}" if row["since"] else ""
    future = ", which is in the future" if ahead(row) else ""
    return f"{who}{what}{since}, last renewed {session_name(row['renewed'])}{future}"
