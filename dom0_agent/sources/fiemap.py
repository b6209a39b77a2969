"""Where the file system keeps a file's bytes, by the FIEMAP ioctl.

Structures and flags: Linux, ``include/uapi/linux/fiemap.h``.
"""

import errno
import fcntl
import struct
from array import array
from collections.abc import Iterator

from dom0_agent.sources.extents import UNSURE, WORD, Row, Rows, joined

_FS_IOC_FIEMAP = 0xC020660B
_SYNC = 1
_HEAD = struct.Struct("=QQIIII")
_RECORD = 56
_BATCH = 2048

_LAST = 0x1
_SHARED = 0x2000
ENCODED = 0x8
UNWRITTEN = 0x800
DOUBTFUL = 0x2 | 0x4 | ENCODED | 0x80 | 0x100 | 0x200 | 0x400
"""Unknown, delalloc, compressed, encrypted, not aligned, inline, tail: nothing can be concluded
from such an extent. Of a compressed one the map does not say from where within it the bytes are
taken."""
_SHOWN = 1 << 17
"""Extents looked at to say what a file holds alone."""


def exclusive(fd: int, size: int) -> int:
    """Bytes of a file that no other file shares; of one in very many pieces, of as much as is
    looked at.
    """
    found = looked = 0
    for words in records(fd, size):
        pairs = zip(words[2::7], words[5::7], strict=True)
        found += sum(length for length, flags in pairs if not flags & _SHARED)
        looked += len(words) // 7
        if looked >= _SHOWN:
            break
    return found


def rows(fd: int, size: int) -> Rows:
    """See Reader."""
    return joined(_rows(words) for words in records(fd, size))


def _rows(words: "array[int]") -> Iterator[Row]:
    for logical, physical, length, flags in zip(
        words[0::7], words[1::7], words[2::7], words[5::7], strict=True
    ):
        if flags & DOUBTFUL:
            yield logical, length, 0, 0, UNSURE
        elif not flags & UNWRITTEN:  # that reads as zeros, as a hole does
            yield logical, length, 0, (physical - logical) & WORD, 0


def flush(fd: int) -> None:
    """Wait until all that was written to a file has its place. fsync(2) does not: on Btrfs a log of
    it is enough for that.
    """
    next(records(fd, 1, 1), None)


def records(fd: int, size: int, most: int = _BATCH) -> "Iterator[array[int]]":
    """The kernel's records up to ``size`` bytes of the file, in order and some at a time: seven
    numbers of 64 bits each.
    """
    start = 0
    while start < size:
        buffer = bytearray(_HEAD.size + most * _RECORD)
        _HEAD.pack_into(buffer, 0, start, size - start, _SYNC, 0, most, 0)
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, buffer)
        count = _HEAD.unpack_from(buffer)[3]
        if count == 0:
            return
        words = array("Q", bytes(memoryview(buffer)[_HEAD.size : _HEAD.size + count * _RECORD]))
        yield words
        end = words[-7] + words[-5]
        if end <= start:
            raise OSError(errno.EIO, "the file system's map does not advance")
        start = end
        if words[-2] & _LAST:
            return
