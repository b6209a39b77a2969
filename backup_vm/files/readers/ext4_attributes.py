# SPDX-License-Identifier: GPL-2.0-or-later
"""Extended attributes of ext4, in the inode and in a block of their own."""

from collections.abc import Iterator
from struct import Struct, pack, unpack_from
from typing import Protocol

from backup_vm.files.readers.source import LONGEST_VALUE, Malformed

_MAGIC = b"\x00\x00\x02\xea"
_ENTRY = Struct("<BBHIII")
_ACLS = {2: b"system.posix_acl_access", 3: b"system.posix_acl_default"}
_PREFIXES = {0: b"", 1: b"user.", 4: b"trusted.", 6: b"security.", 7: b"system.", 10: b"gnu."}
_SYSTEM = 7
_ACL_USER, _ACL_GROUP = 2, 8


class _Blocks(Protocol):
    def block(self, number: int) -> bytes: ...
    def whole(self, node: int, size: int) -> bytes: ...


def attributes(blocks: _Blocks, inode: bytes) -> Iterator[tuple[bytes, bytes]]:
    """All of an inode, but what holds inline data."""
    for index, name, value in _all(blocks, inode):
        if index in _ACLS:
            yield _ACLS[index], _acl(value)
        elif index in _PREFIXES and (index, name) != (_SYSTEM, b"data"):
            yield _PREFIXES[index] + name, value


def inline_data(blocks: _Blocks, inode: bytes) -> bytes:
    """What of a file's contents is among its attributes."""
    for index, name, value in _all(blocks, inode):
        if (index, name) == (_SYSTEM, b"data"):
            return value
    return b""


def _all(blocks: _Blocks, inode: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    if len(inode) > 132:
        start = 128 + unpack_from("<H", inode, 128)[0]
        if inode[start : start + 4] == _MAGIC:
            yield from _entries(blocks, inode, start + 4, start + 4)
    number = unpack_from("<I", inode, 104)[0] | unpack_from("<H", inode, 118)[0] << 32
    if number:
        block = blocks.block(number)
        if block[:4] != _MAGIC:
            raise Malformed("extended attributes are damaged")
        yield from _entries(blocks, block, 32, 0)


def _entries(
    blocks: _Blocks, raw: bytes, at: int, values: int
) -> Iterator[tuple[int, bytes, bytes]]:
    while at + 4 <= len(raw) and raw[at : at + 4] != bytes(4):
        if at + _ENTRY.size > len(raw):
            raise Malformed("extended attributes are damaged")
        length, index, offset, inode, size, _ = _ENTRY.unpack_from(raw, at)
        name = raw[at + _ENTRY.size : at + _ENTRY.size + length]
        start = values + offset
        if size > LONGEST_VALUE or len(name) != length or (not inode and start + size > len(raw)):
            raise Malformed("extended attributes are damaged")
        value = blocks.whole(inode, size) if inode else raw[start : start + size]
        yield index, name, value
        at += _ENTRY.size + (length + 3 & ~3)


def _acl(raw: bytes) -> bytes:
    """An access control list as getxattr(2) gives it: on disk only some entries have an id."""
    if raw[:4] != b"\x01\0\0\0":
        raise Malformed("an access control list is damaged")
    found, at = [pack("<I", 2)], 4
    while at < len(raw):
        if at + 4 > len(raw):
            raise Malformed("an access control list is damaged")
        tag, rights = unpack_from("<HH", raw, at)
        at += 4
        number = 0xFFFFFFFF
        if tag in (_ACL_USER, _ACL_GROUP):
            if at + 4 > len(raw):
                raise Malformed("an access control list is damaged")
            (number,) = unpack_from("<I", raw, at)
            at += 4
        found.append(pack("<HHI", tag, rights, number))
    return b"".join(found)
