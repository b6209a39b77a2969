# SPDX-License-Identifier: GPL-2.0-or-later
"""The ids of a pending session as they are extracted, so that an interrupted transfer resumes where
it stopped.

A file of groups, each with its own digest; the first that does not check out ends the log. The log
ends where the last group ends that was written whole: entries leave memory only then, so that a
write that fails, or is short, loses none and can be tried again. Holding the log's lock is what
being "in the middle of Extract" means.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from common.durable import UNREADABLE, Busy, lock, pwrite_all, remove
from dom0_agent.compiled import COMPILED
from dom0_agent.tracking.chunk_ids import ENTRY, ChunkEntry, Entry
from wire.layout import Structure
from wire.status import Code, Refused

if TYPE_CHECKING:
    from construct import Bytes, GreedyRange, Int32ul, Int64ul, this

    from wire.declared import of


class GroupHead(Structure, compiled=COMPILED):
    """Beginning of a group of the log."""

    first: Annotated[int, Int64ul * "first chunk number covered"]
    end: Annotated[int, Int64ul * "first chunk number not covered"]
    count: Annotated[int, Int32ul * "number of entries"]
    digest: Annotated[bytes, Bytes(16) * "BLAKE2b-128 of first, end and the entries"]


class Group(Structure):
    """A group of the log."""

    head: GroupHead
    entries: Annotated[list[ChunkEntry], of(ChunkEntry)[this.head.count]]


class LogFile(Structure):
    """The log of a pending session."""

    groups: Annotated[list[Group], GreedyRange(of(Group))]


_GROUP = GroupHead.row()
_FULL_GROUP = 1024
"""Entries kept in memory before they are written."""
_MAX_GROUP = 1 << 16
"""Entries in one group at most; a larger count can only be damage."""


def _digest(first: int, end: int, payload: bytes) -> bytes:
    return hashlib.blake2b(
        first.to_bytes(8, "little") + end.to_bytes(8, "little") + payload, digest_size=16
    ).digest()


class LogDamaged(Refused):
    """A log does not hold what was written to it."""

    def __init__(self, text: str) -> None:
        super().__init__(Code.INTERNAL, text)


class PendingLog:
    """The log of one pending session. ``position`` is the first chunk number it does not cover.
    Methods raise OSError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fd = _locked(path)
        except Busy:
            raise Refused(Code.BUSY, f"{path} is in use: the session is being extracted") from None
        self._entries: list[Entry] = []
        self._end = self.position = 0
        try:
            for start, _, upto, payload in self._groups():
                self.position, self._end = upto, start + _GROUP.size + len(payload)
            # Behind the first group that is not sound may be sound ones, of a write that was not
            # synced and came to disk in part: without what is between they say nothing.
            os.ftruncate(self._fd, self._end)
        except BaseException:
            os.close(self._fd)
            raise
        self._written = self.position

    def close(self) -> None:
        """Release the log. What was not written by ``flush`` or ``sync`` is extracted again by the
        next call.
        """
        os.close(self._fd)

    def _groups(self) -> Iterator[tuple[int, int, int, bytes]]:
        """File offset, first chunk number covered, first not covered, and payload of each sound
        group.
        """
        at = expected = 0
        while len(head := self._read(_GROUP.size, at)) == _GROUP.size:
            first, end, count, digest = _GROUP.unpack(head)
            if first != expected or end <= first or count > _MAX_GROUP:
                return
            payload = self._read(count * ENTRY.size, at + _GROUP.size)
            if len(payload) != count * ENTRY.size or _digest(first, end, payload) != digest:
                return
            yield at, first, end, payload
            at, expected = at + _GROUP.size + len(payload), end

    def _read(self, length: int, at: int) -> bytes:
        """Nothing where a sector is bad: the log ends there, and what comes after is extracted
        again.
        """
        try:
            return os.pread(self._fd, length, at)
        except OSError:
            return b""

    def entries(self) -> Iterator[Entry]:
        """Every entry, in order of chunk number; LogDamaged unless all up to ``position`` can be
        read back.

        What a root is made of must be what the log keeps: a log that reads back shorter than it
        was written would give the root of another image.
        """
        self.flush()
        covered = 0
        for _, _, end, payload in self._groups():
            yield from ENTRY.iter_unpack(payload)
            covered = end
        if covered != self.position:
            raise LogDamaged(
                f"{self._path} reads back to chunk {covered}, and was written to {self.position}"
            )

    def rewind(self, number: int) -> None:
        """Forget what is known of chunk ``number`` and all after it."""
        self.flush()
        if number >= self.position:
            return
        for at, first, end, payload in self._groups():
            if end > number:
                os.ftruncate(self._fd, at)
                self._end, self.position, self._written = at, first, first
                if number > first:
                    self.append(
                        number, [entry for entry in ENTRY.iter_unpack(payload) if entry[0] < number]
                    )
                return

    def append(self, end: int, entries: list[Entry]) -> None:
        """Add the entries of the chunks from ``position`` up to ``end``, in order. Not durable
        before ``sync``.
        """
        self._entries += entries
        self.position = end
        if len(self._entries) >= _FULL_GROUP:
            self.flush()

    def flush(self) -> None:
        """Write what was added, as groups."""
        while self._written < self.position:
            part = self._entries[:_MAX_GROUP]
            last = len(part) == len(self._entries)
            end = self.position if last else part[-1][0] + 1
            payload = b"".join(ENTRY.pack(*entry) for entry in part)
            head = _GROUP.pack(self._written, end, len(part), _digest(self._written, end, payload))
            # At the end as we know it, not at the file's: what a write left that failed halfway is
            # overwritten by its next try.
            pwrite_all(self._fd, head + payload, self._end)
            self._end += len(head) + len(payload)
            self._written = end
            del self._entries[: len(part)]

    def sync(self) -> None:
        """Make the log durable. After a failure it is emptied: the kernel calls pages clean that it
        could not write.
        """
        self.flush()
        try:
            os.fsync(self._fd)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._fd, 0)
            raise


def in_use(path: Path) -> bool:
    """Whether the session of a log is being extracted."""
    try:
        os.close(_locked(path))
    except Busy:
        return True
    return False


def _locked(path: Path) -> int:
    """A log's lock. One that the disk has lost is an empty one: what it had is extracted again."""
    try:
        fd = lock(path)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
    except OSError as error:
        if error.errno not in UNREADABLE | {errno.EISDIR}:
            raise
    remove(path)
    return lock(path)
