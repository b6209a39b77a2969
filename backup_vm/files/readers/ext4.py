# SPDX-License-Identifier: GPL-2.0-or-later
"""ext2, ext3 and ext4, with what is still in the journal.

Linux, Documentation/filesystems/ext4, has the layout.
"""

import stat
from bisect import bisect_left
from collections.abc import Iterator
from struct import Struct, unpack_from

from backup_vm.files.readers.ext4_attributes import attributes, inline_data
from backup_vm.files.readers.ext4_journal import Moved, contents_of, replayed
from backup_vm.files.readers.ext4_map import in_lists, in_tree
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

_FILETYPE, _RECOVER, _META_BG, _EXTENTS, _64BIT = 2, 4, 0x10, 0x40, 0x80
_LARGE_FOLDERS = 0x4000
_KNOWN = 0x3E7D6 | _LARGE_FOLDERS
"""Features without which a reader must not continue; not among them: compression, journal devices
and dirdata.
"""
_ENCRYPTED, _HAS_EXTENTS, _INLINE = 0x800, 0x80000, 0x10000000
_ROOT = 2
_ENTRY = Struct("<IHBB")


class Ext4:
    """One file system."""

    def __init__(self, source: Source) -> None:
        self._source = source
        if source.size < 2048 or source.read(1024 + 56, 2) != b"\x53\xef":
            raise Absent
        self._moved: Moved = {}
        self._superblock(source.read(1024, 1024))
        self.notes: list[str] = []
        self.root = _ROOT
        if self._incompat & _RECOVER:
            self._replay()
        self._moved_numbers = sorted(self._moved)

    def _superblock(self, raw: bytes) -> None:
        if unpack_from("<I", raw, 76)[0] == 0:
            self._inode_size, self._incompat, compat = 128, 0, 0
        else:
            (self._inode_size,) = unpack_from("<H", raw, 88)
            compat, self._incompat = unpack_from("<II", raw, 92)
        if unknown := self._incompat & ~_KNOWN:
            raise Unsupported(f"this ext4 has features that are not read here: {unknown:#x}")
        self.kind = "ext4" if self._incompat & _EXTENTS else "ext3" if compat & 4 else "ext2"
        inodes, low = unpack_from("<II", raw, 0)
        self._first, log = unpack_from("<II", raw, 20)[0], unpack_from("<I", raw, 24)[0]
        self._per_group, self._inodes_per_group = (
            unpack_from("<I", raw, 32)[0],
            unpack_from("<I", raw, 40)[0],
        )
        large = self._incompat & _64BIT
        self._descriptor = unpack_from("<H", raw, 254)[0] if large else 32
        self._blocks = low | (unpack_from("<I", raw, 336)[0] << 32 if large else 0)
        if (
            log > 6
            or not self._per_group
            or not self._inodes_per_group
            or not 32 <= self._descriptor <= 1024
            or not 128 <= self._inode_size <= 65536
            or not inodes
        ):
            raise Malformed("the superblock of ext4 is damaged")
        self._size = 1024 << log
        self._inodes, self._meta_first = inodes, unpack_from("<I", raw, 260)[0]
        self._journal = unpack_from("<I", raw, 224)[0]

    def _replay(self) -> None:
        if not self._journal:
            self.notes.append("its journal is elsewhere: the newest changes are not shown")
            return
        extents = list(self._extents(self._journal))
        if any(extent.place is None for extent in extents):
            raise Malformed("the journal of ext4 is damaged")
        found, complete = replayed(self._source, extents, self._size)
        self._moved = found
        if not complete:
            self.notes.append("it has fast commits in its journal: they are not shown")
        if 1024 // self._size in found:
            at = 1024 % self._size
            raw = contents_of(self._source, found[1024 // self._size], self._size)
            self._superblock(raw[at : at + 1024])

    def _read(self, offset: int, length: int) -> bytes:
        """What describes files: from the journal where it has newer blocks."""
        if not self._moved:
            return self._source.read(offset, length)
        parts, end = [], offset + length
        while offset < end:
            number, at = divmod(offset, self._size)
            step = min(end - offset, self._size - at)
            moved = self._moved.get(number)
            if moved is None:
                parts.append(self._source.read(offset, step))
            else:
                parts.append(contents_of(self._source, moved, self._size)[at : at + step])
            offset += step
        return b"".join(parts)

    def _block(self, number: int) -> bytes:
        return self._read(number * self._size, self._size)

    def _inode(self, node: int) -> bytes:
        if not 0 < node <= self._inodes:
            raise Malformed(f"there is no inode {node}")
        group, index = divmod(node - 1, self._inodes_per_group)
        raw = self._read(self._descriptor_at(group), self._descriptor)
        (table,) = unpack_from("<I", raw, 8)
        if len(raw) >= 64 and self._incompat & _64BIT:
            table |= unpack_from("<I", raw, 40)[0] << 32
        return self._read(table * self._size + index * self._inode_size, self._inode_size)

    def _descriptor_at(self, group: int) -> int:
        """Descriptors of groups follow the superblock, or (meta_bg) are in the groups they
        describe.
        """
        each = self._size // self._descriptor
        block = group // each
        if not self._incompat & _META_BG or block < self._meta_first:
            return int((self._first + 1) * self._size + group * self._descriptor)
        first = block * each
        # a group with a copy of the superblock has it before the descriptors
        has_copy = first < 2 or any(_is_power(first, base) for base in (3, 5, 7))
        at = self._first + first * self._per_group + has_copy
        return int(at * self._size + group % each * self._descriptor)

    def stat(self, node: int) -> Stat:
        """See Reader."""
        raw = self._inode(node)
        mode, uid, low, atime, ctime, mtime, _, gid, links = unpack_from("<HHIiiiIHH", raw)
        uid |= unpack_from("<H", raw, 120)[0] << 16
        gid |= unpack_from("<H", raw, 122)[0] << 16
        major, minor = _device(raw) if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else (0, 0)
        accessed, modified, changed = (
            _time(seconds, raw, at) for seconds, at in ((atime, 140), (mtime, 136), (ctime, 132))
        )
        size = self._length(raw, mode, low)
        return Stat(mode, links, uid, gid, size, accessed, modified, changed, major, minor)

    def _length(self, raw: bytes, mode: int, low: int) -> int:
        # in a folder's inode, ext2 has another field there
        large = stat.S_ISREG(mode) or self._incompat & _LARGE_FOLDERS
        size = low | (unpack_from("<I", raw, 108)[0] << 32 if large else 0)
        if size > LARGEST_FILE:
            raise Malformed("a file has an impossible size")
        return int(size)

    def _opened(self, node: int, want: int) -> tuple[bytes, int, int]:
        """An inode of this type, its flags and size."""
        raw = self._inode(node)
        mode, _, low = unpack_from("<HHI", raw)
        if stat.S_IFMT(mode) != want:
            raise Malformed(f"inode {node} is not of the type that is said elsewhere")
        (flags,) = unpack_from("<I", raw, 32)
        if flags & _ENCRYPTED:
            raise Unsupported("it is encrypted within the file system")
        return raw, flags, self._length(raw, mode, low)

    def names(self, node: int) -> Iterator[Name]:
        """See Reader."""
        raw, flags, size = self._opened(node, stat.S_IFDIR)
        if flags & _INLINE:
            yield from self._entries(raw[44:100])  # after the number of the folder above
            yield from self._entries(inline_data(self, raw))
            return
        for extent in within(self._extents(node), -(-size // self._size) * self._size):
            first = self._at(extent) // self._size
            for number in range(first, first + extent.length // self._size):
                yield from self._entries(self._block(number))

    def _entries(self, raw: bytes) -> Iterator[Name]:
        at = 0
        while at + _ENTRY.size <= len(raw):
            inode, length, named, kind = _ENTRY.unpack_from(raw, at)
            if not self._incompat & _FILETYPE:
                named |= kind << 8
            if length in (0, 0xFFFF) and len(raw) == 65536:
                length = 65536
            if (
                length < _ENTRY.size + (named if inode else 0)
                or at + length > len(raw)
                or named > 255
            ):
                raise Malformed("a folder is damaged")
            name = raw[at + _ENTRY.size : at + _ENTRY.size + named]
            if inode and name not in (b".", b".."):
                yield Name(name, inode)
            at += length

    def extents(self, node: int) -> Iterator[Extent]:
        """See Reader."""
        raw, flags, size = self._opened(node, stat.S_IFREG)
        if flags & _INLINE:
            if size:
                yield Extent(0, size, None)
            return
        for extent in within(self._extents(node), size):
            yield from self._from_journal(extent) if self._moved else (extent,)

    def _from_journal(self, extent: Extent) -> Iterator[Extent]:
        """An extent, in pieces where the journal has blocks of it (data=journal)."""
        offset, length = extent.offset, extent.length
        place = self._source.start + self._at(extent)
        first = self._at(extent) // self._size
        last = (self._at(extent) + length - 1) // self._size
        at = bisect_left(self._moved_numbers, first)
        done = 0
        while at < len(self._moved_numbers) and self._moved_numbers[at] <= last:
            start = (self._moved_numbers[at] - first) * self._size
            if start > done:
                yield Extent(offset + done, start - done, place + done)
            step = min(self._size, length - start)
            yield Extent(offset + start, step, None)
            done, at = start + step, at + 1
        if done < length:
            yield Extent(offset + done, length - done, place + done)

    def _extents(self, node: int) -> Iterator[Extent]:
        raw = self._inode(node)
        (flags,) = unpack_from("<I", raw, 32)
        size, mapped = self._size, raw[40:100]
        if flags & _HAS_EXTENTS:
            found = in_tree(self._block, mapped)
        else:
            length = self._length(raw, stat.S_IFREG, unpack_from("<I", raw, 4)[0])
            found = in_lists(self._block, mapped, size, -(-length // size))
        for block, count, where in found:
            yield Extent(block * size, count * size, self._source.place(where * size, count * size))

    def _at(self, extent: Extent) -> int:
        """Where in the file system an extent begins."""
        if extent.place is None:
            raise Malformed("the map of a file is damaged")
        return extent.place - self._source.start

    def contents(self, node: int, offset: int, length: int) -> bytes:
        """See Reader."""
        raw, flags, size = self._opened(node, stat.S_IFREG)
        if flags & _INLINE:
            return (raw[40:100] + inline_data(self, raw))[:size][offset : offset + length]
        for extent in within(self._extents(node), size):
            if extent.offset <= offset < extent.offset + extent.length:
                at = self._at(extent) + offset - extent.offset
                return self._read(at, min(length, extent.offset + extent.length - offset))
        raise Malformed("a file has no contents there")

    def link(self, node: int) -> bytes:
        """See Reader."""
        raw, flags, size = self._opened(node, stat.S_IFLNK)
        if size > LONGEST_LINK:
            raise Malformed("a link is too long")
        if flags & _INLINE:
            return (raw[40:100] + inline_data(self, raw))[:size]
        if size < 60 and not flags & _HAS_EXTENTS:
            return raw[40 : 40 + size]
        for extent in self._extents(node):
            return self._read(self._at(extent), size)
        raise Malformed("a link leads nowhere")

    def attributes(self, node: int) -> Iterator[tuple[bytes, bytes]]:
        """See Reader."""
        return attributes(self, self._inode(node))

    def block(self, number: int) -> bytes:
        """A block, for attributes."""
        return self._block(number)

    def whole(self, node: int, size: int) -> bytes:
        """A small file's contents: an attribute's value can be one."""
        out = bytearray(size)
        for extent in within(self._extents(node), size):
            at = self._at(extent)
            out[extent.offset : extent.offset + extent.length] = self._read(at, extent.length)
        return bytes(out)


def _is_power(number: int, base: int) -> bool:
    while number > 1 and number % base == 0:
        number //= base
    return number == 1


def _device(raw: bytes) -> tuple[int, int]:
    old, new = unpack_from("<II", raw, 40)
    if old:
        return old >> 8 & 0xFF, old & 0xFF
    return new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00


def _time(seconds: int, raw: bytes, at: int) -> int:
    """Nanoseconds; larger inodes have two more bits of seconds, and the rest of the second."""
    extra = 0
    if len(raw) >= at + 4 and 128 + unpack_from("<H", raw, 128)[0] >= at + 4:
        (extra,) = unpack_from("<I", raw, at)
    return (seconds + ((extra & 3) << 32)) * 10**9 + (extra >> 2)
