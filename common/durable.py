# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing files so that after a crash there is the old content or the new, never a mixture."""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.existing import is_dir


class Busy(Exception):
    """Somebody else holds the lock."""


@contextmanager
def closing_fd(fd: int) -> Iterator[int]:
    """Close a descriptor at the end, which also gives up a lock."""
    try:
        yield fd
    finally:
        os.close(fd)


UNREADABLE = frozenset(
    {errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.EREMOTEIO, errno.ENODATA, errno.EILSEQ}
)
"""What opening or reading a file answers when the disk has lost it: a bad sector, in the disk's own
words where a file system hands them on (Linux, block/blk-core.c: ENODATA is a medium's error);
damage to what XFS or ext4 keep of it.
"""
_SMALL = 16 << 20
NOT_DIRECT = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
"""What file systems answer that cannot write past the page cache, or not this: then it goes
through it.
"""
_NO_SUCH_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


def read_small(path: Path, most: int = _SMALL) -> bytes:
    """A file of at most ``most`` bytes that was written here, whole. OSError; one of UNREADABLE for
    what nobody writes here, as a damaged file system may show it: a longer one, or a FIFO, for
    which nothing waits.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with closing_fd(fd):
        if stat.S_ISREG(os.fstat(fd).st_mode):
            with open(fd, "rb", closefd=False) as file:
                data = file.read(most + 1)
            if len(data) <= most:
                return data
    raise OSError(errno.EUCLEAN, f"not a regular file of at most {most >> 20} MiB", str(path))


def remove(path: Path) -> None:
    """Remove a file that was written here, or the folder that a damaged file system shows in its
    place; nothing happens when it is gone.
    """
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:
        import shutil  # 2 ms, for the programs that unpack archives

        shutil.rmtree(path)


def sync_directory(directory: Path) -> None:
    """Make renames and removals in a directory durable, where its file system can do that."""
    with closing_fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        sync_directory_fd(fd)


def sync_directory_fd(fd: int) -> None:
    """Make renames and removals in an open directory durable.

    Some network and FUSE file systems refuse fsync of a folder as such (seen: EINVAL, ENOTSUP):
    their renames are as durable as they ever get. Any other error (EIO) is a failed write.
    """
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_SUCH_SYNC:
            raise


def sync_file(fd: int) -> None:
    """Bring a file to disk; the error of a file system that cannot do that at all says so.

    There is nothing to do without it: what is called done could be gone after a power cut.
    """
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_SUCH_SYNC:
            raise
        raise OSError(
            error.errno,
            f"its file system cannot bring files to disk (fsync: {error.strerror}); keep the"
            " archive on another one",
        ) from None


def still_named(fd: int) -> bool:
    """Whether an open file has a name still; where it has none, or where that cannot be known, it
    is closed, and with that its lock given up.
    """
    named = False
    try:
        named = os.fstat(fd).st_nlink > 0
    finally:
        if not named:
            os.close(fd)
    return named


def pwrite_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``; raise OSError.

    One pwrite(2) may take less than it is given (a signal, a disk about to be full): what is not
    written yet is tried again, and the error that stands in the way is raised then.
    """
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(fd, view, offset)
        if written == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        view, offset = view[written:], offset + written


def make_directory(directory: Path, mode: int = 0o700) -> None:
    """Create a directory and its parents durably; nothing happens when it is there."""
    if is_dir(directory):
        return
    make_directory(directory.parent, mode)
    directory.mkdir(mode=mode, exist_ok=True)
    sync_directory(directory.parent)


def write_synced(path: Path, *parts: bytes, mode: int = 0o600) -> None:
    """Write a file and its contents to disk. Its directory entry is durable after sync_directory
    only. OSError says which file.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with closing_fd(fd):
            at = 0
            for part in parts:
                pwrite_all(fd, part, at)
                at += len(part)
            os.fsync(fd)
    except OSError as error:
        # Only opening says it; that a disk is full comes out when it is written.
        error.filename = error.filename or str(path)
        raise


def replace(path: Path, *parts: bytes, mode: int = 0o600) -> None:
    """Replace a file atomically: the one commit point of every state change."""
    temporary = path.with_name(path.name + ".tmp")
    # To disk before it gets the name: a rename may come to disk before the contents of what it
    # renames do, and a crash then leaves an empty file in the place of the old one.
    try:
        write_synced(temporary, *parts, mode=mode)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # on a full disk what is left of it would only take room
            temporary.unlink()
        if isinstance(error, OSError) and error.filename2 is not None:
            # A folder is in its place, say: what has to go is that.
            error.filename, error.filename2 = str(path), None
        raise
    sync_directory(path.parent)


def lock(path: Path, shared: bool = False, patience: float = 0.0) -> int:
    """Take an advisory lock (flock) on a file, made if missing; return its descriptor, to be closed
    to unlock.

    Waits up to ``patience`` seconds, then raises Busy.
    """
    return lock_fd(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), shared, patience)


def lock_fd(fd: int, shared: bool = False, patience: float = 0.0) -> int:
    """Lock an open file as ``lock`` does, and return it; it is closed when an error is raised."""
    # flock(2) waits without a limit, and an alarm would be for the main thread alone. So it is
    # asked again and again; most locks here are held for milliseconds.
    deadline = time.monotonic() + patience
    try:
        while True:
            try:
                fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                return fd
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Busy from None
                time.sleep(0.02)
    except BaseException:
        os.close(fd)
        raise
