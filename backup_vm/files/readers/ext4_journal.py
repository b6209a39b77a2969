# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal of ext4 (jbd2): blocks that were committed and not yet written to their places.

A snapshot of a volume in use nearly always has some; the kernel would write them when it mounts.
"""

from collections.abc import Iterator
from struct import Struct, unpack_from

from backup_vm.files.readers.source import Extent, Malformed, Source

_MAGIC = 0xC03B3998
_HEAD = Struct(">III")
_DESCRIPTOR, _COMMIT, _REVOKE = 1, 2, 5
_64BIT, _CHECKSUM_2, _CHECKSUM_3, _FAST_COMMIT = 2, 8, 0x10, 0x20
_KNOWN = 0x3F
_ESCAPED, _SAME_ID, _LAST = 1, 2, 8


Moved = dict[int, tuple[int, bool]]
"""Blocks by number: where in the file system the journal has them, and whether escaped."""


def replayed(source: Source, extents: list[Extent], size: int) -> tuple[Moved, bool]:
    """Where the journal has blocks of ``size`` bytes that a mount would write; and whether that is
    all.

    ``extents`` are those of the journal's file. Raises Malformed.
    """
    return _Journal(source, extents, size).replay()


def contents_of(source: Source, moved: tuple[int, bool], size: int) -> bytes:
    """A block as the journal has it: one that began with the journal's own magic is escaped."""
    raw = source.read(moved[0], size)
    return _MAGIC.to_bytes(4, "big") + raw[4:] if moved[1] else raw


class _Journal:
    def __init__(self, source: Source, extents: list[Extent], size: int) -> None:
        self._source, self._size = source, size
        self._places = [
            at
            for extent in extents
            for at in range(extent.place or 0, (extent.place or 0) + extent.length, size)
        ]
        raw = self._block(0)
        if len(raw) < 1024 or _HEAD.unpack_from(raw)[0] != _MAGIC:
            raise Malformed("the journal of ext4 is damaged")
        numbers: tuple[int, ...] = unpack_from(">5I", raw, 12)
        block_size, length, self._first, self._sequence, self._start = numbers
        is_second = _HEAD.unpack_from(raw)[1] == 4
        self._features = unpack_from(">I", raw, 40)[0] if is_second else 0
        self._end = length
        if self._features & _FAST_COMMIT:
            self._end -= unpack_from(">I", raw, 84)[0] or 256
        if (
            block_size != size
            or self._features & ~_KNOWN
            or not 0 < self._first < self._end <= length <= len(self._places)
            or (self._start and not self._first <= self._start < self._end)
        ):
            raise Malformed("the journal of ext4 is damaged, or of a kind that is not read here")

    def _block(self, number: int) -> bytes:
        if number >= len(self._places):
            raise Malformed("the journal of ext4 is damaged")
        return self._source.read(self._places[number] - self._source.start, self._size)

    def replay(self) -> tuple[Moved, bool]:
        writes: list[tuple[int, int, int, bool]] = []
        """Sequence, block, and where in the journal its contents are, escaped or not."""
        revoked: dict[int, int] = {}
        for sequence, kind, raw, data in self._committed():
            if kind == _REVOKE:
                for block in self._revoked(raw):
                    revoked[block] = sequence
            else:
                for i, (block, escaped) in enumerate(self._tags(raw)):
                    writes.append((sequence, block, self._after(data, i), escaped))
        found: Moved = {}
        for sequence, block, at, escaped in writes:
            if sequence > revoked.get(block, -1):
                found[block] = (self._places[at] - self._source.start, escaped)
        return found, not self._features & _FAST_COMMIT

    def _after(self, number: int, count: int = 1) -> int:
        """The block that many later: the journal is a ring."""
        return self._first + (number - self._first + count) % (self._end - self._first)

    def _committed(self) -> Iterator[tuple[int, int, bytes, int]]:
        """Descriptors and revocations of whole transactions, with the block after each."""
        if not self._start:
            return
        at, sequence, pending = self._start, self._sequence, []
        left = self._end - self._first
        while left > 0:
            raw = self._block(at)
            magic, kind, number = _HEAD.unpack_from(raw)
            if magic != _MAGIC or number != sequence:
                return  # of an earlier round, or not committed
            data = self._after(at)
            step = 1
            if kind == _DESCRIPTOR:
                step += sum(1 for _ in self._tags(raw))
                pending.append((sequence, kind, raw, data))
            elif kind == _REVOKE:
                pending.append((sequence, kind, raw, data))
            elif kind == _COMMIT:
                yield from pending
                pending, sequence = [], sequence + 1
            else:
                return
            at, left = self._after(at, step), left - step

    def _tags(self, raw: bytes) -> Iterator[tuple[int, bool]]:
        end = len(raw) - (4 if self._features & (_CHECKSUM_2 | _CHECKSUM_3) else 0)
        wide = bool(self._features & _64BIT)
        if self._features & _CHECKSUM_3:
            size = 16
        else:
            size = 8 + 4 * wide + 2 * bool(self._features & _CHECKSUM_2)
        at = _HEAD.size
        while at + size <= end:
            if self._features & _CHECKSUM_3:
                block, flags, high = unpack_from(">III", raw, at)
            else:
                block, _, flags = unpack_from(">IHH", raw, at)
                high = unpack_from(">I", raw, at + 8)[0] if wide else 0
            yield block | (high << 32 if wide else 0), bool(flags & _ESCAPED)
            if flags & _LAST:
                return
            at += size + (0 if flags & _SAME_ID else 16)

    def _revoked(self, raw: bytes) -> Iterator[int]:
        (count,) = unpack_from(">I", raw, _HEAD.size)
        if count > len(raw):
            raise Malformed("the journal of ext4 is damaged")
        size = 8 if self._features & _64BIT else 4
        for at in range(_HEAD.size + 4, count - size + 1, size):
            yield int.from_bytes(raw[at : at + size], "big")
