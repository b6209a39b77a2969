# SPDX-License-Identifier: GPL-2.0-or-later
"""Extended attributes of XFS: in the inode, in leaves, and values in blocks of their own."""

from collections.abc import Iterator
from struct import pack, unpack_from
from typing import TYPE_CHECKING

from backup_vm.files.readers.source import LONGEST_VALUE, Malformed

if TYPE_CHECKING:
    from backup_vm.files.readers.xfs import Inode, Xfs

_LOCAL, _ROOT, _SECURE, _PARENT, _INCOMPLETE = 1, 2, 4, 8, 0x80
_SHORT = 1
_LEAVES, _NODES = (0xFBEE, 0x3BEE), (0xFEBE, 0x3EBE)
_ACLS = {
    b"SGI_ACL_FILE": b"system.posix_acl_access",
    b"SGI_ACL_DEFAULT": b"system.posix_acl_default",
}
_DEEPEST = 5
_VALUE_HEADER = 56


def attributes(xfs: "Xfs", inode: "Inode") -> Iterator[tuple[bytes, bytes]]:
    """All of an inode."""
    fork = inode.attribute_fork
    if not fork or (inode.attribute_format != _SHORT and not inode.attribute_extents):
        return
    found = _short(fork) if inode.attribute_format == _SHORT else _Blocks(xfs, inode).all()
    for flags, name, value in found:
        if flags & (_PARENT | _INCOMPLETE):
            continue
        if flags & _ROOT and name in _ACLS:
            yield _ACLS[name], _acl(value)
            continue
        prefix = b"trusted." if flags & _ROOT else b"security." if flags & _SECURE else b"user."
        yield prefix + name, value


def _short(raw: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    if len(raw) < 4:
        raise Malformed("extended attributes are damaged")
    total, count = unpack_from(">HB", raw)
    at = 4
    for _ in range(count):
        if at + 3 > min(total, len(raw)):
            raise Malformed("extended attributes are damaged")
        named, valued, flags = raw[at], raw[at + 1], raw[at + 2]
        end = at + 3 + named + valued
        if end > min(total, len(raw)):
            raise Malformed("extended attributes are damaged")
        yield flags, raw[at + 3 : at + 3 + named], raw[at + 3 + named : end]
        at = end


class _Blocks:
    """Attributes that are in blocks."""

    def __init__(self, xfs: "Xfs", inode: "Inode") -> None:
        self._xfs = xfs
        self._newer = xfs.version == 5
        count = inode.attribute_extents
        self._map = list(xfs.mapped(inode.attribute_format, inode.attribute_fork, count))

    def _block(self, number: int) -> bytes:
        for first, count, block in self._map:
            if first <= number < first + count:
                return self._xfs.read_block(block + number - first)
        raise Malformed("extended attributes are damaged")

    def all(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Of every leaf, which name the one after them."""
        number, raw = 0, self._block(0)
        for _ in range(_DEEPEST):
            if unpack_from(">H", raw, 8)[0] not in _NODES:
                break
            (number,) = unpack_from(">I", raw, (64 if self._newer else 16) + 4)
            raw = self._block(number)
        seen = {number}
        while True:
            yield from self._leaf(raw)
            (number,) = unpack_from(">I", raw)
            if not number:
                return
            if number in seen:
                raise Malformed("extended attributes are damaged")
            seen.add(number)
            raw = self._block(number)

    def _leaf(self, raw: bytes) -> Iterator[tuple[int, bytes, bytes]]:
        if unpack_from(">H", raw, 8)[0] not in _LEAVES:
            raise Malformed("extended attributes are damaged")
        info, header = (56, 80) if self._newer else (12, 32)
        (count,) = unpack_from(">H", raw, info)
        if header + 8 * count > len(raw):
            raise Malformed("extended attributes are damaged")
        for at in range(header, header + 8 * count, 8):
            where, flags = unpack_from(">HB", raw, at + 4)
            if where + 12 > len(raw) and where + 3 > len(raw):
                raise Malformed("extended attributes are damaged")
            if flags & _INCOMPLETE:
                continue
            if flags & _LOCAL:
                size, named = unpack_from(">HB", raw, where)
                end = where + 3 + named + size
                if end > len(raw):
                    raise Malformed("extended attributes are damaged")
                yield flags, raw[where + 3 : where + 3 + named], raw[where + 3 + named : end]
            else:
                if where + 9 > len(raw):
                    raise Malformed("extended attributes are damaged")
                block, size, named = unpack_from(">IIB", raw, where)
                yield flags, raw[where + 9 : where + 9 + named], self._value(block, size)

    def _value(self, number: int, size: int) -> bytes:
        if size > LONGEST_VALUE:
            raise Malformed("extended attributes are damaged")
        found = bytearray()
        while len(found) < size:
            raw = self._block(number)
            if self._newer:
                if raw[:4] != b"XARM":
                    raise Malformed("extended attributes are damaged")
                raw = raw[_VALUE_HEADER:]
            found += raw
            number += 1
        return bytes(found[:size])


def _acl(raw: bytes) -> bytes:
    """An access control list as getxattr(2) gives it."""
    if len(raw) < 4 or len(raw) != 4 + 12 * unpack_from(">I", raw)[0]:
        raise Malformed("an access control list is damaged")
    found = [pack("<I", 2)]
    for at in range(4, len(raw), 12):
        tag, number, rights = unpack_from(">IIH", raw, at)
        number = number if tag in (2, 8) else 0xFFFFFFFF
        found.append(pack("<HHI", tag & 0xFFFF, rights, number))
    return b"".join(found)
