# SPDX-License-Identifier: GPL-2.0-or-later
"""Kinds of faults: what a disk that is full, broken, read-only, over its quota or far away answers,
from the n-th call on.
"""

from dataclasses import dataclass

from tests.faultfs import WRITING, Fault

ROOM = "create,write,mkdir"
"""What needs room."""
READS = "open,read,readdir,getattr"
SYNCS = "fsync,fsyncdir,flush"
CHANGES = ",".join((*WRITING, "fsync", "fsyncdir", "flush"))
NEVER = 1 << 60


@dataclass(frozen=True)
class Kind:
    """``operations`` fail with ``error`` from the n-th on; ``once``: only that one. ``short``: a
    write takes so many bytes; ``then``: what the calls after that one end with."""

    name: str
    operations: str
    error: str = ""
    once: bool = False
    short: int = 0
    then: str = ""

    def fault(self, number: int, path: str) -> Fault:
        """The fault at call ``number``, counted from 1, of those below ``path``."""
        return Fault(
            self.operations,
            self.error,
            path,
            after=number - 1,
            times=1 if self.once else None,
            short=self.short,
            then=self.then,
        )

    def counter(self, path: str) -> Fault:
        """A fault that never comes, and counts the calls that could meet this one."""
        return self.fault(NEVER, path)


KINDS = (
    Kind("full", ROOM, "ENOSPC"),
    Kind("full for a moment", ROOM, "ENOSPC", once=True),
    Kind("over quota", f"{ROOM},flush", "EDQUOT"),
    Kind("short write", "write", once=True, short=7),
    Kind("short write, then full", ROOM, once=True, short=100, then="ENOSPC"),
    Kind("short writes", "write", short=5000),
    Kind("interrupted", f"{ROOM},open,fsync", "EINTR", once=True),
    Kind("one change fails", CHANGES, "EIO", once=True),
    Kind("broken", f"{CHANGES},{READS}", "EIO"),
    Kind("one read fails", READS, "EIO", once=True),
    Kind("unreadable", READS, "EIO"),
    Kind("one sync fails", SYNCS, "EIO", once=True),
    Kind("syncs fail", SYNCS, "EIO"),
    Kind("read-only", ",".join(WRITING), "EROFS"),
)
