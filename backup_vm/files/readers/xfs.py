# SPDX-License-Identifier: GPL-2.0-or-later
"""XFS, versions 4 and 5. Its journal is not replayed.

"XFS Algorithms & Data Structures" (xfs-documentation) has the layout; all numbers are big-endian.
"""

import stat
from collections.abc import Iterator
from struct import Struct, unpack_from

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
from backup_vm.files.readers.xfs_attributes import attributes
from backup_vm.files.readers.xfs_journal import is_clean

_DEVICE, _LOCAL, _EXTENTS, _BTREE = 0, 1, 2, 3
_KNOWN = 0xEF
"""Features without which a reader must not continue; not among them: needs repair, metadir,
zoned.
"""
_REALTIME, _BIGTIME, _LARGE_COUNTS = 1, 8, 0x10
_FOLDER_BYTES = 1 << 35
"""Where the entries of a folder end, and its index begins."""
_DEEPEST = 9
_RECORD = Struct(">QQ")
_LINK_HEADER, _LINK_BLOCKS = 56, 16


class Inode:
    """One inode, with the fork that has its contents and the fork that has its attributes."""

    def __init__(self, raw: bytes, node: int) -> None:
        magic, self.mode, version, self.format = unpack_from(">2sHBB", raw)
        if magic != b"IN" or not 1 <= version <= 3:
            raise Malformed(f"inode {node} is damaged")
        self.node, self.raw = node, raw
        start = 176 if version == 3 else 100
        self.flags2 = unpack_from(">Q", raw, 120)[0] if version == 3 else 0
        self.realtime = bool(unpack_from(">H", raw, 90)[0] & _REALTIME)
        (self.size,) = unpack_from(">Q", raw, 56)
        if self.size > LARGEST_FILE:
            raise Malformed(f"inode {node} is damaged")
        self.attribute_format = raw[83]
        at = start + raw[82] * 8
        if at > len(raw):
            raise Malformed(f"inode {node} is damaged")
        self.fork = raw[start:at] if raw[82] else raw[start:]
        self.attribute_fork = raw[at:] if raw[82] else b""
        if self.flags2 & _LARGE_COUNTS:
            (self.extents,), (self.attribute_extents,) = (
                unpack_from(">Q", raw, 24),
                unpack_from(">I", raw, 76),
            )
        else:
            self.extents, self.attribute_extents = unpack_from(">IH", raw, 76)

    def time(self, at: int) -> int:
        """Nanoseconds."""
        if self.flags2 & _BIGTIME:
            return int(unpack_from(">Q", self.raw, at)[0]) - (1 << 31) * 10**9
        seconds, rest = unpack_from(">iI", self.raw, at)
        return int(seconds * 10**9 + rest)


class Xfs:
    """One file system."""

    kind = "xfs"

    def __init__(self, source: Source) -> None:
        self._source = source
        if source.size < 512 or source.read(0, 4) != b"XFSB":
            raise Absent
        raw = source.read(0, 512)
        (self.block_size,) = unpack_from(">I", raw, 4)
        (self.root,) = unpack_from(">Q", raw, 56)
        self._group_blocks, self._groups = unpack_from(">II", raw, 84)
        versions, _, self._inode_size, self._per_block = unpack_from(">HHHH", raw, 100)
        self._per_block_log, self._group_log, folder_log = raw[123], raw[124], raw[192]
        self.version = versions & 15
        features, incompatible = unpack_from(">I", raw, 200)[0], unpack_from(">I", raw, 216)[0]
        if self.version not in (4, 5) or (self.version == 5 and incompatible & ~_KNOWN):
            raise Unsupported(
                f"this XFS has features that are not read here: version {self.version},"
                f" {incompatible:#x}"
            )
        if (
            self.block_size not in (512 << i for i in range(8))
            or not 256 <= self._inode_size <= min(self.block_size, 2048)
            or self._per_block != self.block_size // self._inode_size
            or 1 << self._per_block_log != self._per_block
            or not 1 <= self._group_blocks <= 1 << self._group_log
            or self._group_log > 31
            or self.block_size << folder_log > 65536
        ):
            raise Malformed("the superblock of XFS is damaged")
        self._has_types = bool(incompatible & 1 if self.version == 5 else features & 0x200)
        self._folder_block = self.block_size << folder_log
        start, (blocks,) = unpack_from(">Q", raw, 48)[0], unpack_from(">I", raw, 96)
        self.notes = []
        if not start:
            self.notes.append("its journal is elsewhere: the newest changes may not be shown")
        elif not is_clean(source, self.byte(start, blocks), blocks * self.block_size):
            self.notes.append(
                "it was in use, and its journal is not replayed: newest changes may be missing"
            )

    def byte(self, block: int, count: int = 1) -> int:
        """Where blocks are. Raises Malformed."""
        group, within_group = block >> self._group_log, block & (1 << self._group_log) - 1
        if group >= self._groups or within_group + count > self._group_blocks:
            raise Malformed("something is said to be beyond the end of XFS")
        return int((group * self._group_blocks + within_group) * self.block_size)

    def inode(self, node: int) -> Inode:
        """One inode."""
        block, index = node >> self._per_block_log, node & self._per_block - 1
        at = self.byte(block) + index * self._inode_size
        return Inode(self._source.read(at, self._inode_size), node)

    def read_block(self, block: int) -> bytes:
        """One block."""
        return self._source.read(self.byte(block), self.block_size)

    def _of_type(self, node: int, want: int) -> Inode:
        inode = self.inode(node)
        if stat.S_IFMT(inode.mode) != want:
            raise Malformed(f"inode {node} is not of the type that is said elsewhere")
        return inode

    def stat(self, node: int) -> Stat:
        """See Reader."""
        inode = self.inode(node)
        raw = inode.raw
        uid, gid, links = unpack_from(">III", raw, 8)
        major = minor = 0
        if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
            (device,) = unpack_from(">I", inode.fork)
            major, minor = device >> 18, device & 0x3FFFF
        accessed, modified, changed = (inode.time(at) for at in (32, 40, 48))
        return Stat(
            inode.mode, links, uid, gid, inode.size, accessed, modified, changed, major, minor
        )

    def names(self, node: int) -> Iterator[Name]:
        """See Reader."""
        inode = self._of_type(node, stat.S_IFDIR)
        if inode.format == _LOCAL:
            yield from self._short_folder(inode.fork)
            return
        pieces = [
            (first * self.block_size, count * self.block_size, self.byte(block, count))
            for first, count, block in self.mapped(inode.format, inode.fork, inode.extents)
            if first * self.block_size < _FOLDER_BYTES
        ]
        for raw in self._folder_blocks(pieces):
            yield from self._entries(raw)

    def _folder_blocks(self, pieces: list[tuple[int, int, int]]) -> Iterator[bytes]:
        """Blocks of a folder: each may be made of several of the file system's."""
        kept, expected = bytearray(), -1
        for offset, length, place in pieces:
            for at in range(0, length, self.block_size):
                if len(kept) % self._folder_block and offset + at != expected:
                    raise Malformed("a folder is damaged")
                kept += self._source.read(place + at, self.block_size)
                expected = offset + at + self.block_size
                if len(kept) == self._folder_block:
                    yield bytes(kept)
                    kept.clear()
        if kept:
            raise Malformed("a folder is damaged")

    def _short_folder(self, raw: bytes) -> Iterator[Name]:
        count, large = raw[0], raw[1]
        width = 8 if large else 4
        at = 2 + width
        for _ in range(count):
            end = at + 3 + (raw[at] if at < len(raw) else 0) + self._has_types + width
            if end > len(raw):
                raise Malformed("a folder is damaged")
            yield Name(
                raw[at + 3 : at + 3 + raw[at]], int.from_bytes(raw[end - width : end], "big")
            )
            at = end

    def _entries(self, raw: bytes) -> Iterator[Name]:
        magic, at, end = raw[:4], 64 if self.version == 5 else 16, len(raw)
        if magic not in ((b"XDB3", b"XDD3") if self.version == 5 else (b"XD2B", b"XD2D")):
            raise Malformed("a folder is damaged")
        if magic in (b"XDB3", b"XD2B"):
            end -= 8 + 8 * unpack_from(">I", raw, end - 8)[0]
        while at + 8 <= end:
            if raw[at : at + 2] == b"\xff\xff":
                (length,) = unpack_from(">H", raw, at + 2)
                if length < 8:
                    raise Malformed("a folder is damaged")
                at += length
                continue
            (node,) = unpack_from(">Q", raw, at)
            length = raw[at + 8] if at + 8 < end else 0
            name = raw[at + 9 : at + 9 + length]
            at += 11 + length + self._has_types + 7 & ~7
            if at > end or not length:
                raise Malformed("a folder is damaged")
            if name not in (b".", b".."):
                yield Name(name, node)

    def extents(self, node: int) -> Iterator[Extent]:
        """See Reader."""
        inode = self._of_type(node, stat.S_IFREG)
        return within(self._extents(inode), inode.size)

    def _extents(self, inode: Inode) -> Iterator[Extent]:
        if inode.realtime:
            raise Unsupported("it is on a device of its own (realtime)")
        size, source = self.block_size, self._source
        for first, count, block in self.mapped(inode.format, inode.fork, inode.extents):
            place = source.place(self.byte(block, count), count * size)
            yield Extent(first * size, count * size, place)

    def contents(self, node: int, offset: int, length: int) -> bytes:
        """See Reader."""
        raise Malformed("a file has no contents there")

    def mapped(self, form: int, fork: bytes, count: int) -> Iterator[tuple[int, int, int]]:
        """Where a fork's blocks are: first block in the file, how many, and where; without those
        that nothing was written to.
        """
        if form == _EXTENTS:
            if count * 16 > len(fork):
                raise Malformed("the map of a file is damaged")
            yield from _records(fork, 0, count)
        elif form == _BTREE:
            if len(fork) < 4:
                raise Malformed("the map of a file is damaged")
            level, number = unpack_from(">HH", fork)
            most = (len(fork) - 4) // 16
            if not 0 < level <= _DEEPEST or number > most:
                raise Malformed("the map of a file is damaged")
            for pointer in unpack_from(f">{number}Q", fork, 4 + most * 8):
                yield from self._tree(pointer, level - 1)
        else:
            raise Malformed("the map of a file is damaged")

    def _tree(self, block: int, level: int) -> Iterator[tuple[int, int, int]]:
        raw = self.read_block(block)
        magic, found, number = unpack_from(">4sHH", raw)
        header = 72 if self.version == 5 else 24
        most = (len(raw) - header) // 16
        if magic not in (b"BMAP", b"BMA3") or found != level or number > most:
            raise Malformed("the map of a file is damaged")
        if level:
            for pointer in unpack_from(f">{number}Q", raw, header + most * 8):
                yield from self._tree(pointer, level - 1)
        else:
            yield from _records(raw, header, number)

    def link(self, node: int) -> bytes:
        """See Reader."""
        inode = self._of_type(node, stat.S_IFLNK)
        if inode.size > LONGEST_LINK:
            raise Malformed("a link is too long")
        if inode.format == _LOCAL:
            return inode.fork[: inode.size]
        found = bytearray()
        for _, count, block in self.mapped(inode.format, inode.fork, inode.extents):
            raw = b"".join(self.read_block(block + i) for i in range(min(count, _LINK_BLOCKS)))
            if self.version == 5:  # each run of blocks has a header
                if raw[:4] != b"XSLM":
                    raise Malformed("a link is damaged")
                (length,) = unpack_from(">I", raw, 8)
                raw = raw[_LINK_HEADER : _LINK_HEADER + length]
            found += raw
            if len(found) >= inode.size:
                return bytes(found[: inode.size])
        raise Malformed("a link is damaged")

    def attributes(self, node: int) -> Iterator[tuple[bytes, bytes]]:
        """See Reader."""
        return attributes(self, self.inode(node))


def _records(raw: bytes, at: int, count: int) -> Iterator[tuple[int, int, int]]:
    for high, low in _RECORD.iter_unpack(raw[at : at + count * 16]):
        if not high >> 63:  # else nothing was written there
            first = high >> 9 & (1 << 54) - 1
            yield first, low & (1 << 21) - 1, (high & 511) << 43 | low >> 21
