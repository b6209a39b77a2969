# SPDX-License-Identifier: GPL-2.0-or-later
"""A reader that ends as soon as somebody wants to write: whoever asks by sparsebak.Read is another
qube, and must not keep backups from being made by reading on and on.

A file beside the lock's has two bytes to lock. The kernel drops what a process that died had.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from backup_vm.archive.storage.interface import WANTED, Workspace
from backup_vm.errors import DamagedError, ForbiddenError
from common.durable import Busy, lock_fd

PATIENCE = 5.0
"""Seconds that a writer waits for such readers to end."""
_READERS, _WRITER = 0, 1


@contextmanager
def giving_way(workspace: Workspace) -> Iterator[Callable[[], bool]]:
    """Let writers know that this reader ends when it is told to; gives a function that says whether
    it is.
    """
    try:
        fd = workspace.descriptor(WANTED, create=True)
    except (ForbiddenError, OSError):  # where nothing can be written, nobody waits to
        yield lambda: False
        return
    try:
        with suppress(OSError):  # a file system without such locks: then nobody waits for us
            fcntl.lockf(fd, fcntl.LOCK_SH, 1, _READERS)
        yield lambda: not _free(fd, fcntl.LOCK_SH, _WRITER)
    finally:
        os.close(fd)


def wait_for_lock(workspace: Workspace, lock_file: Callable[[], int]) -> int:
    """Lock a file that is busy for a writer, as lock_fd does, if readers are at it that give way;
    raise Busy.
    """
    try:
        fd = workspace.descriptor(WANTED)
    except (DamagedError, OSError):  # nobody ever gave way here
        raise Busy from None
    try:
        if _free(fd, fcntl.LOCK_EX, _READERS):
            raise Busy
        # Waits for a reader that looks this moment, and for a writer that came before: PATIENCE.
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX, 1, _WRITER)
        except OSError:
            raise Busy from None
        return lock_fd(lock_file(), patience=PATIENCE)
    finally:
        os.close(fd)


def _free(fd: int, how: int, at: int) -> bool:
    """Whether a byte could be locked now; it is not kept."""
    try:
        fcntl.lockf(fd, how | fcntl.LOCK_NB, 1, at)
    except OSError:
        return False
    fcntl.lockf(fd, fcntl.LOCK_UN, 1, at)
    return True
