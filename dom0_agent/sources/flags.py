# SPDX-License-Identifier: GPL-2.0-or-later
"""Flags of image files (chattr(1)): what a clone must have in common with what it is a clone of.

Flags and numbers: Linux, ``include/uapi/linux/fs.h`` (FS_IOC_GETFLAGS, FS_IOC_SETFLAGS).
"""

import errno
import fcntl

_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602
COMPRESSED, IMMUTABLE, APPEND, NOCOW = 0x4, 0x10, 0x20, 0x00800000
COPYING = NOCOW | COMPRESSED | 0x400
"""What decides how a file is written: no copy on write, compressed, not compressed."""
NOT_HERE = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
"""What file systems answer that know nothing of flags, or of other attributes of files."""


def flags(fd: int) -> int:
    """A file's flags; none where its file system has none. Raises OSError."""
    buffer = bytearray(8)  # the kernel writes an int, whatever the number of the ioctl says
    try:
        fcntl.ioctl(fd, _GETFLAGS, buffer)
    except OSError as error:
        if error.errno in NOT_HERE:
            return 0
        raise
    return int.from_bytes(buffer[:4], "little")


def _set_flags(fd: int, wanted: int) -> None:
    fcntl.ioctl(fd, _SETFLAGS, wanted.to_bytes(8, "little"))


def change_flags(fd: int, wanted: int) -> None:
    """In two steps: Btrfs takes no copy on write instead of compression, which a folder may have
    given, only from neither.
    """
    has = flags(fd)
    if has & COPYING and has != wanted:
        _set_flags(fd, has & ~COPYING)
    _set_flags(fd, wanted)


def match_nocow(like: int, empty: int) -> None:
    """Make an empty file with copy on write, or without, as another is: later Btrfs does not let it
    be changed.
    """
    wanted, has = flags(like), flags(empty)
    if (wanted ^ has) & NOCOW:
        change_flags(empty, (has & ~COPYING) | (wanted & NOCOW))
