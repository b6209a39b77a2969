# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the file system keeps a file's bytes, by the FIEMAP ioctl.

Structures and flags: Linux, ``include/uapi/linux/fiemap.h``.
"""

import errno
import fcntl
from collections.abc import Iterator

from dom0_agent import kernel
from dom0_agent.sources.extents import UNSURE, WORD, Row, Rows, joined

_FS_IOC_FIEMAP = 0xC020660B
_SYNC = 1
"""FIEMAP_FLAG_SYNC: what was written and has no place yet is brought to disk first. Without it a
file just written has extents that say "somewhere, later".
"""
_HEAD, _EXTENT = kernel.FiemapHead.row(), kernel.FiemapExtent.row()
_BATCH = 2048
"""Extents asked for at once."""

_LAST = 0x1
SHARED = 0x2000
ENCODED = 0x8
UNWRITTEN = 0x800
DOUBTFUL = 0x2 | 0x4 | ENCODED | 0x80 | 0x100 | 0x200 | 0x400
"""Unknown, delalloc, compressed, encrypted, not aligned, inline, tail: nothing can be concluded
from such an extent. Of a compressed one the map does not say from where within it the bytes are
taken."""
Extent = tuple[int, int, int, bytes, int, bytes]
"""The fields of a FiemapExtent."""


def rows(fd: int, size: int) -> Rows:
    """See Reader."""
    return joined(_rows(extents) for extents in records(fd, size))


def _rows(extents: list[Extent]) -> Iterator[Row]:
    for logical, physical, length, _, flags, _ in extents:
        if flags & DOUBTFUL:
            yield logical, length, 0, 0, UNSURE
        elif not flags & UNWRITTEN:  # that reads as zeros, as a hole does
            yield logical, length, 0, (physical - logical) & WORD, 0


def flush(fd: int) -> None:
    """Wait until all that was written to a file has its place. fsync(2) does not: on Btrfs a log of
    it is enough for that.
    """
    next(records(fd, 1, 1), None)


def records(fd: int, size: int, most: int = _BATCH) -> Iterator[list[Extent]]:
    """The kernel's records up to ``size`` bytes of the file, in order and some at a time."""
    start = 0
    while start < size:
        buffer = bytearray(_HEAD.size + most * _EXTENT.size)
        _HEAD.pack_into(buffer, 0, start, size - start, _SYNC, 0, most, 0)
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, buffer)
        count = _HEAD.unpack_from(buffer)[3]
        if count == 0:
            return
        told = memoryview(buffer)[_HEAD.size : _HEAD.size + count * _EXTENT.size]
        extents = list(_EXTENT.iter_unpack(told))
        yield extents
        logical, _, length, _, flags, _ = extents[-1]
        end = logical + length
        if end <= start:
            raise OSError(errno.EIO, "the file system's map does not advance")
        start = end
        if flags & _LAST:
            return
