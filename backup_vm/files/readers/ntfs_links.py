# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of NTFS that are no plain ones: reparse points, of which each has a tag that says what it
is, and links and devices as Interix and ntfs-3g have them.
"""

import stat
from struct import unpack_from
from typing import NamedTuple

from backup_vm.files.readers.dos import utf8
from backup_vm.files.readers.ntfs_records import DATA, Record, Records
from backup_vm.files.readers.source import LONGEST_LINK, Malformed

_REPARSE = 0xC0
_SYSTEM, _OFFLINE, _IS_REPARSE, _RECALLED = 4, 0x1000, 0x400, 0x400000
_JUNCTION, _SYMLINK, _LINUX_LINK = 0xA0000003, 0xA000000C, 0xA000001D
_TAGS = {
    0x80000013: "its contents are where Windows keeps what several files share (deduplication)",
    0x80000017: "Windows compressed it in a way that is not read here (compact)",
}
_CLOUD, _CLOUD_MASK = 0x9000001A, 0xFFFF0FFF
"""The tag of what a cloud has, too, with four bits for whose."""
_LINUX = {
    0x80000023: stat.S_IFSOCK,
    0x80000024: stat.S_IFIFO,
}
_LONGEST = 16 << 10
_INTERIX_LINK = b"IntxLNK\x01"
_INTERIX = {b"IntxCHR\x00": stat.S_IFCHR, b"IntxBLK\x00": stat.S_IFBLK}


class Special(NamedTuple):
    """What a file is: its mode, 0 where it is a plain one whose contents are not here, which
    ``trouble`` says; of a link where it leads, of a device which.
    """

    mode: int
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    trouble: str = ""


def special_of(records: Records, record: Record, attributes: int) -> Special | None:
    """What a file with these attributes is; None for a plain one. Raises Malformed."""
    if attributes & _IS_REPARSE:
        point = records.stream(record, _REPARSE)
        if point is None or not 8 <= point.size <= _LONGEST:
            raise Malformed("a reparse point is damaged")
        return _point(point.read(0, point.size), attributes)
    if attributes & _SYSTEM:
        data = records.stream(record, DATA)
        if data is not None and 8 < data.size <= 8 + 2 * LONGEST_LINK:
            return _interix(data.read(0, data.size))
    return None


def _point(raw: bytes, attributes: int) -> Special | None:
    (tag,) = unpack_from("<I", raw)
    if tag in (_JUNCTION, _SYMLINK):
        begin = 20 if tag == _SYMLINK else 16
        at, length = unpack_from("<HH", raw, 8)
        name = raw[begin + at : begin + at + length]
        if len(name) != length or length % 2:
            raise Malformed("a reparse point is damaged")
        return _linked(utf8(name).removeprefix(b"\\??\\").replace(b"\\", b"/"))
    if tag == _LINUX_LINK:
        return _linked(raw[12:])
    if tag in _LINUX:
        return Special(_LINUX[tag] | 0o644)
    if tag in _TAGS:
        return Special(0, trouble=_TAGS[tag])
    if tag & _CLOUD_MASK == _CLOUD and attributes & (_OFFLINE | _RECALLED):
        return Special(0, trouble="its contents are in a cloud, and not here")
    return None


def _linked(target: bytes) -> Special:
    if not 0 < len(target) <= LONGEST_LINK or b"\0" in target:
        raise Malformed("a link is damaged")
    return Special(stat.S_IFLNK | 0o777, target)


def _interix(raw: bytes) -> Special | None:
    if raw[:8] == _INTERIX_LINK:
        return _linked(utf8(raw[8 : 8 + (len(raw) - 8) // 2 * 2]))
    if raw[:8] in _INTERIX and len(raw) == 24:
        major, minor = unpack_from("<QQ", raw, 8)
        if major < 1 << 32 and minor < 1 << 32:
            return Special(_INTERIX[raw[:8]] | 0o644, device=(major, minor))
    return None
