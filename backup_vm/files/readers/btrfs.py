# SPDX-License-Identifier: GPL-2.0-or-later
"""Btrfs on one device, with its subvolumes. What fsync wrote after the last commit (the log tree)
is not shown.

Linux, include/uapi/linux/btrfs_tree.h, has the layout.
"""

import stat
from collections.abc import Iterator
from struct import Struct, unpack_from

from backup_vm.files.readers.btrfs_tree import KEY, Chunks, Tree
from backup_vm.files.readers.decompression import NONE, decompressed
from backup_vm.files.readers.source import (
    LARGEST_FILE,
    LONGEST_LINK,
    Absent,
    Extent,
    Malformed,
    Name,
    Source,
    Stat,
    Unsupported,
    within,
)

_KNOWN = 0x10F7F
"""Features without which a reader must not continue; not among them: RAID5 and 6, zoned, others
that move metadata.
"""
_SUPERBLOCK = 64 << 10
_INODE, _ATTRIBUTE, _ENTRY, _INDEX, _EXTENT, _ROOT, _ROOT_REF = 1, 24, 84, 96, 108, 132, 156
_FILES, _NAMES_TREE, _FIRST = 5, 6, 256
_INLINE, _WRITTEN = 0, 1
_LARGEST_COMPRESSED = 128 << 10
"""Bytes of a compressed extent once it is unpacked (BTRFS_MAX_UNCOMPRESSED)."""
_ITEM = Struct("<17sQHHB")
_BITS = 64
"""A node here is a number of 128 bits: the subvolume, and the inode in it."""
_TREES = 8
"""Subvolumes whose nodes are kept."""
_EMPTY = 2
"""What the kernel shows where a subvolume was not taken into a snapshot: an empty folder."""


class Btrfs:
    """One file system."""

    kind = "btrfs"

    def __init__(self, source: Source) -> None:
        self._source = source
        if source.size < _SUPERBLOCK + 4096 or source.read(_SUPERBLOCK + 64, 8) != b"_BHRfS_M":
            raise Absent
        raw = source.read(_SUPERBLOCK, 4096)
        root, chunk_root, log = unpack_from("<QQQ", raw, 80)
        (devices,), (features,) = unpack_from("<Q", raw, 136), unpack_from("<Q", raw, 188)
        sector, node_size = unpack_from("<II", raw, 144)
        (listed,) = unpack_from("<I", raw, 160)
        if features & ~_KNOWN:
            raise Unsupported(f"this Btrfs has features that are not read here: {features:#x}")
        if devices != 1:
            raise Unsupported(f"this Btrfs is on {devices} devices, and one of them is here")
        if node_size not in (4096 << i for i in range(5)) or listed > 2048:
            raise Malformed("the superblock of Btrfs is damaged")
        self._sector = sector
        (device,) = unpack_from("<Q", raw, 201)
        chunks = Chunks(source, device)
        chunks.add_listed(raw[811 : 811 + listed])
        chunks.add_tree(Tree(chunks, chunk_root, raw[199], node_size))
        self._chunks, self._node_size = chunks, node_size
        self._roots = Tree(chunks, root, raw[198], node_size)
        self._trees: dict[int, Tree] = {}
        self.notes = ["fsync wrote to it after its last commit: that is not shown"] if log else []
        self.root = self._default() << _BITS | _FIRST

    def _default(self) -> int:
        for _, raw in self._roots.items(_NAMES_TREE, _ENTRY):
            for key, _, name, _ in _entries(raw):
                if name == b"default" and key[1] == _ROOT:
                    return int(key[0])
        return _FILES

    def _tree(self, number: int) -> Tree:
        tree = self._trees.get(number)
        if tree is None:
            for _, raw in self._roots.items(number, _ROOT):
                if len(raw) < 239:
                    raise Malformed("a subvolume is damaged")
                (at,) = unpack_from("<Q", raw, 176)
                if len(self._trees) == _TREES:
                    del self._trees[next(iter(self._trees))]
                tree = self._trees[number] = Tree(self._chunks, at, raw[238], self._node_size)
                return tree
            raise Malformed(f"there is no subvolume {number}")
        return tree

    def _items(self, node: int, kind: int) -> Iterator[tuple[int, bytes]]:
        """Offsets of keys, and data, of one kind of items of an inode."""
        return self._tree(node >> _BITS).items(node & (1 << _BITS) - 1, kind)

    def _inode(self, node: int) -> bytes:
        for _, raw in self._items(node, _INODE):
            if len(raw) < 160:
                break
            if unpack_from("<Q", raw, 16)[0] > LARGEST_FILE:
                break
            return raw
        raise Malformed(f"inode {node & (1 << _BITS) - 1} is missing or damaged")

    def stat(self, node: int) -> Stat:
        """See Reader."""
        if node & (1 << _BITS) - 1 == _EMPTY:
            return Stat(stat.S_IFDIR | 0o755, 1, 0, 0, 0, 0, 0, 0)
        raw = self._inode(node)
        (size,) = unpack_from("<Q", raw, 16)
        links, uid, gid, mode, device = unpack_from("<IIIIQ", raw, 40)
        accessed, modified, changed = (
            seconds * 10**9 + rest
            for seconds, rest in (unpack_from("<qI", raw, at) for at in (112, 136, 124))
        )
        major, minor = device >> 20 & 0xFFF, device & 0xFFFFF
        return Stat(mode & 0xFFFF, links, uid, gid, size, accessed, modified, changed, major, minor)

    def _of_type(self, node: int, want: int) -> bytes:
        raw = self._inode(node)
        if stat.S_IFMT(unpack_from("<I", raw, 52)[0]) != want:
            raise Malformed("an inode is not of the type that is said elsewhere")
        return raw

    def names(self, node: int) -> Iterator[Name]:
        """See Reader."""
        if node & (1 << _BITS) - 1 == _EMPTY:
            return
        self._of_type(node, stat.S_IFDIR)
        for _, raw in self._items(node, _INDEX):
            for (number, kind, _), _, name, _ in _entries(raw):
                if kind == _ROOT:
                    yield Name(name, self._subvolume(node, number, name))
                elif kind == _INODE:
                    yield Name(name, (node >> _BITS) << _BITS | number)
                else:
                    raise Malformed("a folder is damaged")

    def _subvolume(self, folder: int, number: int, name: bytes) -> int:
        """The folder of a subvolume; of one that is elsewhere, as in a snapshot, an empty one."""
        for offset, raw in self._roots.items(folder >> _BITS, _ROOT_REF):
            if offset == number:
                if len(raw) < 18:
                    raise Malformed("a subvolume is damaged")
                parent, _, length = unpack_from("<QQH", raw)
                if parent == folder & (1 << _BITS) - 1 and raw[18 : 18 + length] == name:
                    return number << _BITS | _FIRST
        return number << _BITS | _EMPTY

    def extents(self, node: int) -> Iterator[Extent]:
        """See Reader."""
        (size,) = unpack_from("<Q", self._of_type(node, stat.S_IFREG), 16)
        return within(self._extents(node), size)

    def _extents(self, node: int) -> Iterator[Extent]:
        for offset, raw in self._items(node, _EXTENT):
            (unpacked,), packing, encrypted, form = unpack_from("<Q", raw, 8), *_form(raw)
            if encrypted:
                raise Unsupported("it is encrypted within the file system")
            if form == _INLINE:
                if unpacked:
                    yield Extent(offset, unpacked, None)
                continue
            if form != _WRITTEN:
                continue  # nothing was written there
            where, stored, skipped, length = _where(raw)
            if not where:
                continue  # a hole
            if packing != NONE:
                yield Extent(offset, length, None)
                continue
            if skipped + length > stored:
                raise Malformed("the map of a file is damaged")
            for at, step, place in self._chunks.pieces(where + skipped, length):
                yield Extent(offset + at, step, self._source.place(place, step))

    def contents(self, node: int, offset: int, length: int) -> bytes:
        """See Reader."""
        tree = self._tree(node >> _BITS)
        found = tree.last(node & (1 << _BITS) - 1, _EXTENT, offset)
        if found is None:
            raise Malformed("a file has no contents there")
        start, raw = found
        (unpacked,), packing, _, form = unpack_from("<Q", raw, 8), *_form(raw)
        if unpacked > _LARGEST_COMPRESSED:
            raise Malformed("a compressed piece of a file is too large")
        if form == _INLINE:
            data, skipped, covered = raw[21:], 0, unpacked
        else:
            where, stored, skipped, covered = _where(raw)
            if stored > 2 * _LARGEST_COMPRESSED:
                raise Malformed("a compressed piece of a file is too large")
            data = self._chunks.read(where, stored)
        data = decompressed(data, packing, unpacked, self._sector, form == _INLINE)
        first = skipped + offset - start
        return data[first : min(skipped + covered, first + length)]

    def link(self, node: int) -> bytes:
        """See Reader."""
        (size,) = unpack_from("<Q", self._of_type(node, stat.S_IFLNK), 16)
        if not 0 < size <= LONGEST_LINK:
            raise Malformed("a link is damaged")
        target = self.contents(node, 0, size)
        if len(target) != size:
            raise Malformed("a link is damaged")
        return target

    def attributes(self, node: int) -> Iterator[tuple[bytes, bytes]]:
        """See Reader."""
        if node & (1 << _BITS) - 1 == _EMPTY:
            return
        for _, raw in self._items(node, _ATTRIBUTE):
            for _, _, name, value in _entries(raw):
                yield name, value


def _entries(raw: bytes) -> Iterator[tuple[tuple[int, int, int], int, bytes, bytes]]:
    """Entries of one item: key, type, name, data. Where names have one hash there are several."""
    at = 0
    while at < len(raw):
        if at + _ITEM.size > len(raw):
            raise Malformed("a folder is damaged")
        key, _, valued, named, kind = _ITEM.unpack_from(raw, at)
        at += _ITEM.size
        end = at + named + valued
        if end > len(raw) or not named:
            raise Malformed("a folder is damaged")
        yield KEY.unpack(key), kind, raw[at : at + named], raw[at + named : end]
        at = end


def _form(raw: bytes) -> tuple[int, int, int]:
    """How an extent is packed, whether it is encrypted, and its type."""
    if len(raw) < 21:
        raise Malformed("the map of a file is damaged")
    packing, encrypted, _, form = unpack_from("<BBHB", raw, 16)
    return packing, encrypted, form


def _where(raw: bytes) -> tuple[int, int, int, int]:
    """Where an extent is, how long there, what of it is skipped, and how much is the file's."""
    if len(raw) < 53:
        raise Malformed("the map of a file is damaged")
    where, stored, skipped, length = unpack_from("<QQQQ", raw, 21)
    return where, stored, skipped, length
