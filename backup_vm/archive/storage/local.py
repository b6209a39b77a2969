# SPDX-License-Identifier: GPL-2.0-or-later
"""An archive in a directory of this machine. Files are written under a temporary name, and renamed
when they are on disk.

Whoever holds the disk can put links, FIFOs and the like into it: every file is opened through
``Beneath``.
"""

import errno
import io
import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO

from backup_vm.archive.storage import LOCK, TEMPORARY, WHOLE, Storage
from backup_vm.archive.storage.beneath import Beneath, GuardedFile
from backup_vm.archive.storage.files import ASIDE, LocalNewFile, LocalReader, rename
from backup_vm.archive.storage.writing import Blocks
from backup_vm.errors import DamagedError, ForbiddenError, LockedError, SparsebakError
from common.durable import Busy, closing_fd, lock_fd, pwrite_all, sync_directory_fd
from common.override import override

if TYPE_CHECKING:
    from backup_vm.archive.lease import Locks

_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""What flock answers where there is none; the lease keeps others away there."""
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
_VOLUME = re.compile("[0-9a-f]{32}")
_UNSEEN = f"{0:010d}-{0:032x}.session"
"""The file that stands for all the sessions of a volume whose folder cannot be looked into: it
cannot be read either.
"""


def _nothing() -> None:
    pass


class LocalStorage(Storage):
    """An archive in a directory of this machine."""

    # Packs of 32 MiB: one is brought to disk while the next fills, without much memory, and an
    # archive has few files. A second one on its way gains nothing on one disk.
    uploads = 1
    pack_size = 32 << 20
    elsewhere = False

    def __init__(self, root: Path) -> None:
        self.root = root
        self.check: Callable[[], None] = _nothing
        self._beneath = Beneath(root)
        self._blocks = Blocks()

    @override
    def describe(self, name: str = "") -> str:
        return str(self.root / name)

    @override
    def close(self) -> None:
        self._beneath.close()

    @override
    def prepare(self) -> None:
        # What is left of an init that failed half way does not keep the next one from beginning.
        mine = {"lost+found", "archive.toml" + TEMPORARY}
        if self.root.exists() and any(entry.name not in mine for entry in self.root.iterdir()):
            raise SparsebakError(
                f"{self.root} is not empty",
                "choose an empty directory, or one that does not exist yet",
            )
        self.root.mkdir(parents=True, exist_ok=True)

    @override
    def lock(self, shared: bool) -> int | None:
        try:
            fd = lock_fd(self._lock_file(), shared)
        except Busy:
            holder = self.read(LOCK, 100).decode("ascii", "replace").strip()
            who = f" (process {holder})" if holder.isdigit() else ""
            raise LockedError(
                f"{self.root} is in use by another run{who}", "wait for it to end, then try again"
            ) from None
        except OSError as error:
            if error.errno in _NO_LOCKS or (shared and error.errno in _READ_ONLY):
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

    @override
    def locks(self) -> "Locks":
        from backup_vm.archive.storage.locks import LocalLocks

        return LocalLocks(self._beneath)

    @override
    def refresh(self) -> None:
        """Every look is a new one."""

    def _lock_file(self) -> int:
        """The lock file, open; another thing in its place, which is no lock of ours, is
        replaced.
        """
        try:
            fd = self.own(LOCK, create=True)
        except DamagedError:
            fd = -1
        else:
            if os.fstat(fd).st_nlink <= 1:
                return fd
            os.close(fd)  # it has another name, maybe elsewhere, and would be written to
        with self._beneath.telling(LOCK, "write"):
            os.unlink(LOCK, dir_fd=self._beneath.fd())
        return self.own(LOCK, create=True)

    @override
    def writable(self) -> bool:
        return os.access(self.root, os.W_OK)

    @override
    def exists(self, name: str) -> bool:
        return self._beneath.exists(name)

    @override
    def names(self, folder: str, suffix: str) -> list[str]:
        return sorted(name for name in self.sizes(folder, False) if name.endswith(suffix))

    @override
    def sizes(self, folder: str, wanted: bool = True) -> dict[str, int]:
        """Without ``wanted`` the sizes mean nothing."""
        found: dict[str, int] = {}
        for middle, is_folder in self._beneath.entries(folder):
            volume = folder == "volumes" and _VOLUME.fullmatch(middle)
            if not is_folder and not volume:
                continue
            inner = f"{folder}/{middle}"
            try:
                files = self._beneath.sizes(inner) if wanted else self._beneath.entries(inner)
            except DamagedError:
                if (
                    volume
                ):  # it must not look as if it had no sessions, or their chunks would be freed
                    found[f"{inner}/{_UNSEEN}"] = -1
                    continue
                raise
            found.update((f"{inner}/{name}", size) for name, size in files)
        return found

    @override
    def local(self, name: str) -> Path:
        if self.exists(name):
            self._beneath.stat(name)
        return self.root / name

    @override
    def open(self, name: str) -> BinaryIO:
        return io.BufferedReader(GuardedFile(self._beneath, name), 1 << 16)

    @override
    def own(self, name: str, create: bool = False) -> int:
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
    def fetch(self, names: list[str]) -> None:
        """They are at hand."""

    @override
    def reader(self, name: str) -> LocalReader:
        return LocalReader(self._beneath, name)

    @override
    def unreadable(self) -> list[str]:
        return []

    @override
    def size(self, name: str) -> int:
        return self._beneath.stat(name).st_size

    @override
    def allocated(self, name: str) -> int:
        return self._beneath.stat(name).st_blocks * 512

    @override
    def read(self, name: str, limit: int = WHOLE) -> bytes:
        try:
            file = self.open(name)
        except FileNotFoundError:
            if not self.exists(name + ASIDE):
                raise
            file = self.open(name + ASIDE)
        with file:
            raw = file.read(limit + 1)
        if len(raw) > limit:
            raise DamagedError(f"{self.describe(name)} is larger than any that is made here")
        return raw

    @override
    def create(self, name: str) -> LocalNewFile:
        self.check()
        return LocalNewFile(self._beneath, name, self._blocks, self.check)

    @override
    def write(self, name: str, *parts: bytes, mode: int = 0o644) -> None:
        self.check()
        with (
            self._beneath.telling(name, "write"),
            self._beneath.folder(name, make=True) as (folder, last),
        ):
            fd = self._beneath.create(folder, last + TEMPORARY, mode)
            try:
                with closing_fd(fd):
                    pwrite_all(fd, b"".join(parts), 0)
                    os.fsync(fd)
                self.check()
                rename(folder, last)
            except BaseException:
                with suppress(OSError):
                    os.unlink(last + TEMPORARY, dir_fd=folder)
                raise

    @override
    def remove(self, *names: str) -> None:
        for name in names:
            self.check()
            with suppress(FileNotFoundError):
                self._remove(name)
        for folder in {name.rpartition("/")[0] for name in names}:
            parts = folder.split("/") if folder else []
            with suppress(FileNotFoundError), self._beneath.telling(folder, "write"):
                with self._beneath.opened(parts, listed=True) as fd:
                    sync_directory_fd(fd)
                    empty = parts and not os.listdir(fd)
                if empty:
                    with self._beneath.folder(folder) as (above, last), suppress(OSError):
                        os.rmdir(last, dir_fd=above)  # another run may have put something there

    def _remove(self, name: str) -> None:
        try:
            with self._beneath.telling(name, "write"), self._beneath.folder(name) as (folder, last):
                os.unlink(last, dir_fd=folder)
        except PermissionError as error:
            raise ForbiddenError(f"cannot remove {error.filename}: {error.strerror}") from None

    @override
    def clean(self) -> None:
        for name in (*self.names("packs", TEMPORARY), *self.names("volumes", TEMPORARY)):
            with suppress(FileNotFoundError, DamagedError):
                self._remove(name)
        for name in self.names("volumes", ASIDE):
            whole = name.removesuffix(ASIDE)
            with (
                suppress(FileNotFoundError, DamagedError),
                self._beneath.telling(name, "write"),
                self._beneath.folder(name) as (folder, last),
            ):
                if self.exists(whole):
                    os.unlink(last, dir_fd=folder)
                else:
                    new = whole.rpartition("/")[2]
                    os.replace(last, new, src_dir_fd=folder, dst_dir_fd=folder)

    @override
    def punch(self, name: str, ranges: list[tuple[int, int]]) -> bool:
        from backup_vm.archive.storage import libc

        self.check()
        with (
            closing_fd(self._beneath.open(name, os.O_RDWR)) as fd,
            self._beneath.telling(name, "write"),
        ):
            if os.fstat(fd).st_nlink > 1:  # another archive's, or anything else's, by another name
                return False
            return libc.punch(fd, ranges)

    @override
    def sync(self) -> None:
        from backup_vm.archive.storage import libc

        with self._beneath.telling("", "write"):
            libc.syncfs(self._beneath.fd())

    @override
    def scratch(self) -> IO[bytes]:
        try:
            return self._nameless()
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
        import tempfile

        return tempfile.TemporaryFile(dir=os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108  # no name

    def _nameless(self) -> IO[bytes]:
        root = self._beneath.fd()
        try:
            fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=root)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                raise
            name = f"scratch-{os.urandom(8).hex()}{TEMPORARY}"
            fd = self._beneath.create(root, name, 0o600)
            os.unlink(name, dir_fd=root)
        return os.fdopen(fd, "w+b")

    @override
    def capacity(self) -> int | None:
        disk = os.statvfs(self._beneath.fd())
        return disk.f_blocks * disk.f_frsize or None

    @override
    def free(self) -> int | None:
        disk = os.statvfs(self._beneath.fd())
        return disk.f_bavail * disk.f_frsize if disk.f_blocks else None
