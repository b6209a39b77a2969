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
"""FIEMAP_FLAG_SYNC: what was written and has no place yet is brought to disk first. Without it a
file just written has extents that say "somewhere, later".
"""
_HEAD = struct.Struct("=QQIIII")
"""struct fiemap: start and length of what is asked for, flags, how many extents were mapped and how
many there is room for.
"""
# struct fiemap_extent, as words of 64 bits:
#   0 logical | 1 physical | 2 length | 3, 4 reserved | 5 flags, 32 bits; reserved | 6 reserved
_WORDS, _LOGICAL, _PHYSICAL, _LENGTH, _FLAGS = 7, 0, 1, 2, 5
_WORD_SIZE = 8
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


def rows(fd: int, size: int) -> Rows:
    """See Reader."""
    return joined(_rows(words) for words in records(fd, size))


def extents(words: "array[int]") -> Iterator[tuple[int, int, int, int]]:
    """Logical and physical offset, length and flags of each extent."""
    fields = (words[field::_WORDS] for field in (_LOGICAL, _PHYSICAL, _LENGTH, _FLAGS))
    return zip(*fields, strict=True)


def _rows(words: "array[int]") -> Iterator[Row]:
    for logical, physical, length, flags in extents(words):
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
    """The kernel's records up to ``size`` bytes of the file, in order and some at a time: _WORDS
    numbers of 64 bits each.
    """
    start = 0
    while start < size:
        buffer = bytearray(_HEAD.size + most * _WORDS * _WORD_SIZE)
        _HEAD.pack_into(buffer, 0, start, size - start, _SYNC, 0, most, 0)
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, buffer)
        count = _HEAD.unpack_from(buffer)[3]
        if count == 0:
            return
        beyond = _HEAD.size + count * _WORDS * _WORD_SIZE
        words = array("Q", bytes(memoryview(buffer)[_HEAD.size : beyond]))
        yield words
        last = words[-_WORDS:]
        end = last[_LOGICAL] + last[_LENGTH]
        if end <= start:
            raise OSError(errno.EIO, "the file system's map does not advance")
        start = end
        if last[_FLAGS] & _LAST:
            return
