"""The ids of a pending session as they are extracted, so that an interrupted transfer goes on where it stopped.

A file of groups, each with its own digest; the first that does not check out ends the log. Holding the log's lock is
what being "in the middle of Extract" means.
"""

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from dom0_agent.ids import ENTRY, Entry
from wire.durable import Busy, lock
from wire.status import Code, Refused

_GROUP = struct.Struct("<QQI16s")
_FULL_GROUP = 1024
"""Entries kept in memory before they are written."""
_MAX_GROUP = 1 << 16
"""Entries in one group at most; a larger count can only be damage."""


def _digest(first: int, end: int, payload: bytes) -> bytes:
    return hashlib.blake2b(struct.pack("<QQ", first, end) + payload, digest_size=16).digest()


class PendingLog:
    """The log of one pending session. ``position`` is the first chunk number it does not cover."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fd = lock(path)
        except Busy:
            raise Refused(Code.BUSY, f"{path} is in use: the session is being extracted") from None
        self.position = end = 0
        self._entries: list[Entry] = []
        for start, _, upto, _ in self._groups():
            self.position, end = upto, start
        self._written = self.position
        os.ftruncate(self._fd, self._after(end) if self.position else 0)

    def close(self) -> None:
        """Write what is left, and release the log."""
        self._flush()
        os.close(self._fd)

    def _after(self, start: int) -> int:
        count = _GROUP.unpack(os.pread(self._fd, _GROUP.size, start))[2]
        return start + _GROUP.size + int(count) * ENTRY.size

    def _groups(self) -> Iterator[tuple[int, int, int, bytes]]:
        """File offset, first chunk number covered, first not covered, and payload of each sound group."""
        at = expected = 0
        while len(head := os.pread(self._fd, _GROUP.size, at)) == _GROUP.size:
            first, end, count, digest = _GROUP.unpack(head)
            if first != expected or end <= first or count > _MAX_GROUP:
                return
            payload = os.pread(self._fd, count * ENTRY.size, at + _GROUP.size)
            if len(payload) != count * ENTRY.size or _digest(first, end, payload) != digest:
                return
            yield at, first, end, payload
            at, expected = at + _GROUP.size + len(payload), end

    def entries(self) -> Iterator[Entry]:
        """Every entry, in order of chunk number."""
        self._flush()
        for _, _, _, payload in self._groups():
            yield from ENTRY.iter_unpack(payload)

    def rewind(self, number: int) -> None:
        """Forget what is known of chunk ``number`` and all after it."""
        self._flush()
        if number >= self.position:
            return
        for at, first, end, payload in self._groups():
            if end > number:
                os.ftruncate(self._fd, at)
                self.position = self._written = first
                if number > first:
                    self.append(
                        number, [entry for entry in ENTRY.iter_unpack(payload) if entry[0] < number]
                    )
                return

    def append(self, end: int, entries: list[Entry]) -> None:
        """Add the entries of the chunks from ``position`` up to ``end``, in order. Not durable before ``sync``."""
        self._entries += entries
        self.position = end
        if len(self._entries) >= _FULL_GROUP:
            self._flush()

    def _flush(self) -> None:
        """Write what was added as groups."""
        entries, self._entries = self._entries, []
        for at in range(0, len(entries) or 1, _MAX_GROUP):
            part = entries[at : at + _MAX_GROUP]
            end = part[-1][0] + 1 if at + _MAX_GROUP < len(entries) else self.position
            if end == self._written:
                return
            payload = b"".join(ENTRY.pack(*entry) for entry in part)
            group = (
                _GROUP.pack(self._written, end, len(part), _digest(self._written, end, payload))
                + payload
            )
            os.pwrite(self._fd, group, os.fstat(self._fd).st_size)
            self._written = end

    def sync(self) -> None:
        """Make the log durable."""
        self._flush()
        os.fsync(self._fd)
