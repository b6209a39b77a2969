# SPDX-License-Identifier: GPL-2.0-or-later
"""Two calls that Python does not offer. Imported only where they are made, for ctypes takes its
time.
"""

import ctypes
import errno
import os
from collections.abc import Iterable

_PUNCH_HOLE, _KEEP_SIZE = 0x02, 0x01  # linux/falloc.h
_LIBC = ctypes.CDLL(None, use_errno=True)


def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
    """fallocate(2); returns 0, raises OSError."""
    while _LIBC.fallocate(fd, mode, ctypes.c_longlong(offset), ctypes.c_longlong(length)):
        if ctypes.get_errno() != errno.EINTR:
            raise _error()
    return 0


def punch(fd: int, ranges: Iterable[tuple[int, int]]) -> bool:
    """Give ranges of an open file (offset, length) back to the file system; they read as zeros.

    False where it cannot do that. Raises OSError.
    """
    for offset, length in ranges:
        try:
            fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
                return False
            raise
    return True


def syncfs(fd: int) -> None:
    """Bring the file system that an open file is on to disk; raise OSError when something written
    to it is lost.
    """
    if _LIBC.syncfs(fd):
        raise _error()


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
