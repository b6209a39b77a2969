# SPDX-License-Identifier: GPL-2.0-or-later
"""Btrfs' trees, and where its chunks are on the device."""

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from struct import Struct, unpack_from

from backup_vm.files.readers.source import Malformed, Source, Unsupported

KEY = Struct("<QBQ")
_POINTER, _LEAF = Struct("<QBQQQ"), Struct("<QBQII")
_HEADER = 101
_DEEPEST = 8
_CHUNK, _CHUNKS = 228, 256
_STRIPED = 0x8 | 0x40 | 0x80 | 0x100
"""RAID 0, 10, 5 and 6: what they store follows other rules."""
_KEPT = 256
Key = tuple[int, int, int]


class Chunks:
    """Logical addresses, by which everything is found, and where they are."""

    def __init__(self, source: Source, device: int) -> None:
        self._source, self._device = source, device
        self._chunks: dict[int, tuple[int, int]] = {}
        self._starts: list[int] = []

    def add_listed(self, raw: bytes) -> None:
        """The chunks that the superblock lists: those of the tree of chunks."""
        at = 0
        while at < len(raw):
            if at + KEY.size + 48 > len(raw):
                raise Malformed("the superblock of Btrfs is damaged")
            _, kind, start = KEY.unpack_from(raw, at)
            if kind != _CHUNK:
                raise Malformed("the superblock of Btrfs is damaged")
            at += KEY.size
            at += self._add(start, raw[at:])
        self._starts = sorted(self._chunks)

    def add_tree(self, tree: "Tree") -> None:
        """All chunks."""
        for start, raw in list(tree.items(_CHUNKS, _CHUNK)):
            self._add(start, raw)
        self._starts = sorted(self._chunks)

    def _add(self, start: int, raw: bytes) -> int:
        if len(raw) < 48:
            raise Malformed("the tree of chunks is damaged")
        length, _, _, kind = unpack_from("<QQQQ", raw)
        (stripes,) = unpack_from("<H", raw, 44)
        if kind & _STRIPED and stripes > 1:
            raise Unsupported("this Btrfs is striped over several devices")
        end = int(48 + 32 * stripes)
        if end > len(raw) or not length:
            raise Malformed("the tree of chunks is damaged")
        for at in range(48, end, 32):
            device, place = unpack_from("<QQ", raw, at)
            if device == self._device:
                self._chunks[start] = (length, place)
                return end
        raise Malformed("the tree of chunks is damaged")

    def pieces(self, address: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Offset, length and place of the pieces that a range is in. Raises Malformed."""
        done = 0
        while done < length:
            at = address + done
            index = bisect_right(self._starts, at) - 1
            start = self._starts[index] if index >= 0 else 0
            size, place = self._chunks.get(start, (0, 0))
            step = min(start + size - at, length - done)
            if step <= 0:
                raise Malformed(f"nothing is at the address {at} of Btrfs")
            yield done, step, place + at - start
            done += step

    def read(self, address: int, length: int) -> bytes:
        """Bytes at an address."""
        pieces = self.pieces(address, length)
        return b"".join(self._source.read(place, step) for _, step, place in pieces)


class Tree:
    """One tree: items with keys, in order."""

    def __init__(self, chunks: Chunks, root: int, level: int, node_size: int) -> None:
        self._chunks, self._root, self._level, self._size = chunks, root, level, node_size
        self._kept: OrderedDict[int, tuple[list[Key], list[tuple[int, ...]], bytes]] = OrderedDict()
        if level > _DEEPEST:
            raise Malformed("a tree of Btrfs is damaged")

    def _node(self, at: int, level: int) -> tuple[list[Key], list[tuple[int, ...]], bytes]:
        """Keys, what each stands for, and the node itself."""
        found = self._kept.get(at)
        if found is not None:
            self._kept.move_to_end(at)
            return found
        raw = self._chunks.read(at, self._size)
        if unpack_from("<Q", raw, 48)[0] != at or raw[100] != level:
            raise Malformed("a tree of Btrfs is damaged")
        (count,) = unpack_from("<I", raw, 96)
        form = _POINTER if level else _LEAF
        if _HEADER + count * form.size > len(raw):
            raise Malformed("a tree of Btrfs is damaged")
        rows = list(form.iter_unpack(raw[_HEADER : _HEADER + count * form.size]))
        keys = [(a, b, c) for a, b, c, _, _ in rows]
        if any(one >= other for one, other in zip(keys, keys[1:], strict=False)):
            raise Malformed("a tree of Btrfs is damaged")
        self._kept[at] = node = keys, [row[3:] for row in rows], raw
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return node

    def _data(self, raw: bytes, row: tuple[int, ...]) -> bytes:
        start = _HEADER + row[0]
        if start + row[1] > len(raw):
            raise Malformed("a tree of Btrfs is damaged")
        return raw[start : start + row[1]]

    def items(self, number: int, kind: int) -> Iterator[tuple[int, bytes]]:
        """Items of one object and kind: the offsets of their keys, and their data."""
        low, high = (number, kind, 0), (number, kind, (1 << 64) - 1)
        for key, data in self._between(self._root, self._level, low, high):
            yield key[2], data

    def _between(self, at: int, level: int, low: Key, high: Key) -> Iterator[tuple[Key, bytes]]:
        keys, rows, raw = self._node(at, level)
        if not level:
            for i in range(bisect_left(keys, low), bisect_right(keys, high)):
                yield keys[i], self._data(raw, rows[i])
            return
        first = max(bisect_right(keys, low) - 1, 0)
        for i in range(first, bisect_right(keys, high)):
            yield from self._between(rows[i][0], level - 1, low, high)

    def last(self, number: int, kind: int, offset: int) -> tuple[int, bytes] | None:
        """The last item of one object and kind whose offset is at most this."""
        at, high = self._root, (number, kind, offset)
        for level in range(self._level, -1, -1):
            keys, rows, raw = self._node(at, level)
            i = bisect_right(keys, high) - 1
            if i < 0:
                return None
            if not level:
                return (keys[i][2], self._data(raw, rows[i])) if keys[i][:2] == high[:2] else None
            at = rows[i][0]
        return None
