# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that are full to the last byte."""

import errno
import os
import shutil
from pathlib import Path

from backup_vm.archive.storage import libc
from common.durable import closing_fd

BALLAST = "ballast"
"""The folder that what fills a disk is in."""


def fill(disk: Path) -> None:
    """Fill a disk until not one byte can be written."""
    ballast = disk / BALLAST
    ballast.mkdir(exist_ok=True)
    first = sum(1 for _ in ballast.iterdir())
    with closing_fd(os.open(disk, os.O_RDONLY)) as fd:
        for at in range(first, first + 20):
            if not _filled_up(ballast / str(at)):
                return
            libc.syncfs(fd)  # what the file system kept for that is free again
    raise AssertionError("it never ran full")


def empty(disk: Path) -> None:
    """Make room again."""
    shutil.rmtree(disk / BALLAST)


def _filled_up(path: Path) -> bool:
    """Write a file until there is no room for a block more; whether there was any."""
    try:
        file = open(path, "wb", buffering=0)
    except OSError as error:
        assert error.errno == errno.ENOSPC
        return False
    with file:
        for size in (1 << 28 >> shift for shift in range(17)):
            try:
                while True:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)
            except OSError as error:
                assert error.errno == errno.ENOSPC
        file.seek(0, os.SEEK_END)
        try:
            while file.write(os.urandom(4096)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
        return file.tell() > 0
