# SPDX-License-Identifier: GPL-2.0-or-later
"""What belongs to this machine alone, wherever the archive is: the catalog, partial sessions, locks
and scratch files.
"""

import errno
import io
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from backup_vm import failures
from backup_vm.archive.storage.directory import Directory
from backup_vm.archive.storage.giving_way import wait_for_lock
from backup_vm.archive.storage.interface import LOCK, TEMPORARY, Workspace
from backup_vm.errors import DamagedError, ForbiddenError, LockedError
from common.durable import Busy, lock_fd, pwrite_all
from common.override import override

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""What flock answers where there is none; the lease keeps others away there."""
_SCRATCH = re.compile(r"scratch-[0-9a-f]{16}\.tmp")
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")


def scratch_name() -> str:
    """A name for a scratch file that must have one; ``clean`` removes what is left of it."""
    return f"scratch-{os.urandom(8).hex()}{TEMPORARY}"


class LocalWorkspace(Directory, Workspace):
    """A workspace in a folder: the archive's own, or one in the user's cache."""

    @override
    def lock(self, shared: bool) -> int | None:
        try:
            try:
                fd = lock_fd(self._lock_file(), shared)
            except Busy:
                if shared:
                    raise
                fd = wait_for_lock(self, self._lock_file)
        except Busy:
            holder = self.read(LOCK, 100).decode("ascii", "replace").strip()
            who = f" (process {holder})" if holder.isdigit() else ""
            raise LockedError(
                f"{self.root} is in use by another run{who}", "wait for it to end, then try again"
            ) from None
        except OSError as error:
            if error.errno in NO_LOCKS or (shared and error.errno in _READ_ONLY):
                return None
            if error.errno not in _READ_ONLY:
                raise
            raise ForbiddenError(
                f"{self.root} cannot be written to: {error.strerror}",
                "mount it for writing, or give the folder to this user",
            ) from None
        if not shared:
            with suppress(OSError):  # it only says who; on a full disk a prune must still begin
                os.ftruncate(fd, 0)
                pwrite_all(fd, f"{os.getpid()}\n".encode(), 0)
        return fd

    def _lock_file(self) -> int:
        """The lock file, open; another thing in its place, which is no lock of ours, is
        replaced.
        """
        try:
            fd = self.descriptor(LOCK, create=True)
        except DamagedError:
            fd = -1
        else:
            if os.fstat(fd).st_nlink <= 1:
                return fd
            os.close(fd)  # it has another name, maybe elsewhere, and would be written to
        with self._beneath.telling(LOCK, "write"):
            os.unlink(LOCK, dir_fd=self._beneath.fd())
        return self.descriptor(LOCK, create=True)

    @override
    def descriptor(self, name: str, create: bool = False) -> int:
        try:
            fd = self._beneath.open(name, os.O_RDWR)
        except FileNotFoundError:
            if not create:
                raise
            with (
                self._beneath.telling(name, "write"),
                self._beneath.folder(name, make=True) as (folder, last),
                suppress(FileExistsError),  # another run was first
            ):
                return os.open(
                    last,
                    os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                    0o600,
                    dir_fd=folder,
                )
            fd = self._beneath.open(name, os.O_RDWR)
        return fd

    @override
    def database(self, name: str) -> Path:
        for suffix in ("", "-journal", "-wal", "-shm"):
            beside = name + suffix
            if not self.exists(beside):
                continue
            if suffix in ("-wal", "-shm"):
                raise DamagedError(
                    f"{self.describe(beside)} is not ours: no such file is made here"
                )
            if self._beneath.stat(beside).st_nlink > 1:
                raise DamagedError(f"{self.describe(beside)} has another name elsewhere")
        with suppress(FileNotFoundError), self.open(name) as file:
            if file.read(20)[18:20] == b"\2\2":
                raise DamagedError(
                    f"{self.describe(name)} is of a kind (WAL) that is not made here"
                )
        with suppress(FileNotFoundError), self.open(name + "-journal") as file:
            # A journal may end in the name of another one, for databases that change together; ours
            # never do. SQLite would look into that file, wherever it is, and remove it.
            file.seek(max(file.seek(0, os.SEEK_END) - len(_JOURNAL_MAGIC), 0))
            if file.read() == _JOURNAL_MAGIC:
                raise DamagedError(f"{self.describe(name)}-journal names another journal")
        return self.root / name

    @override
    def discard(self, name: str) -> None:
        for suffix in ("", "-journal", "-wal", "-shm"):
            with (
                suppress(FileNotFoundError),
                self._beneath.telling(name, "write"),
                self._beneath.folder(name + suffix) as (folder, last),
            ):
                found = os.stat(last, dir_fd=folder, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):  # what is in it may be somebody's
                    aside = f"{last}.foreign-{os.urandom(4).hex()}"
                    os.rename(last, aside, src_dir_fd=folder, dst_dir_fd=folder)
                else:
                    os.unlink(last, dir_fd=folder)

    @override
    def scratch(self) -> IO[bytes]:
        try:
            return self._nameless()
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
        import tempfile

        return tempfile.TemporaryFile(dir=os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108  # no name

    @override
    def refusal(self) -> OSError | None:
        try:
            with self._nameless() as file:
                file.write(bytes(1 << 16))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            return error
        return None

    @override
    def clean(self) -> None:
        with self._beneath.telling(""):
            left = filter(_SCRATCH.fullmatch, os.listdir(self._beneath.fd()))
        for name in left:
            with suppress(FileNotFoundError, DamagedError):
                self._remove(name)

    def _nameless(self) -> IO[bytes]:
        root = self._beneath.fd()
        try:
            fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=root)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                raise
            name = scratch_name()
            fd = self._beneath.create(root, name, 0o600)
            try:
                with suppress(FileNotFoundError):  # a writer by another mount saw to it
                    os.unlink(name, dir_fd=root)
            except BaseException:
                os.close(fd)
                raise
        return io.BufferedRandom(_Scratch(fd, self.describe()), 1 << 16)


class _Scratch(io.FileIO):
    """A file without a name, that says where it is when it cannot be written."""

    def __init__(self, fd: int, place: str) -> None:
        super().__init__(fd, "w+b")
        self._place = place

    @override
    def write(self, data: "ReadableBuffer", /) -> int:
        with failures.naming(self._place):
            return super().write(data)
