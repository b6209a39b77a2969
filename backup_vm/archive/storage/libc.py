"""Two calls that Python does not offer. Imported only where they are made, for ctypes takes its time."""

import ctypes
import errno
import os
from collections.abc import Iterable
from pathlib import Path

from wire.durable import closing_fd

_PUNCH_HOLE, _KEEP_SIZE = 0x02, 0x01  # linux/falloc.h
_LIBC = ctypes.CDLL(None, use_errno=True)


def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
    """fallocate(2); returns 0, raises OSError."""
    if _LIBC.fallocate(fd, mode, ctypes.c_longlong(offset), ctypes.c_longlong(length)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return 0


def punch(path: Path, ranges: Iterable[tuple[int, int]]) -> bool:
    """Give ranges of a file (offset, length) back to the file system; they read as zeros. False where it cannot do that."""
    with closing_fd(os.open(path, os.O_RDWR | os.O_CLOEXEC)) as fd:
        for offset, length in ranges:
            if _LIBC.fallocate(
                fd, _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_longlong(offset), ctypes.c_longlong(length)
            ):
                if ctypes.get_errno() in (errno.EOPNOTSUPP, errno.ENOSYS):
                    return False
                raise _error(path)
    return True


def syncfs(path: Path) -> None:
    """Bring the file system that a directory is on to disk; raise OSError when something written to it is lost."""
    with closing_fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        if _LIBC.syncfs(fd):
            raise _error(path)


def _error(path: Path) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), str(path))
