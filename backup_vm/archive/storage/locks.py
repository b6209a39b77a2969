# SPDX-License-Identifier: GPL-2.0-or-later
"""The folder ``locks`` of an archive: see ``lease``, which says what is done with its files."""

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from backup_vm.archive.lease_files import FOLDER, LONGEST, Locks
from backup_vm.archive.storage.beneath import Beneath
from backup_vm.errors import DamagedError, ForbiddenError
from common.durable import closing_fd, pwrite_all
from common.override import override

if TYPE_CHECKING:
    from backup_vm.archive.storage.objects import Objects, Place

_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
"""What file systems without hard links answer."""


class LocalLocks(Locks):
    """Lock files in the archive's folder. What is no regular file there is none of them."""

    def __init__(self, beneath: Beneath) -> None:
        self._beneath = beneath

    @override
    def list(self) -> dict[str, float]:
        found = {}
        for name, is_folder in self._beneath.entries(FOLDER):
            if not is_folder:
                with suppress(FileNotFoundError, DamagedError):
                    found[name] = self._beneath.stat(f"{FOLDER}/{name}").st_mtime
        return found

    @override
    def create(self, name: str, raw: bytes) -> bool | None:
        """Not brought to disk: after a crash of this machine nobody holds it."""
        path, beside = f"{FOLDER}/{name}", f"probe-{os.urandom(8).hex()}"
        with (
            self._beneath.telling(path, "write"),
            self._beneath.folder(path, make=True) as (fd, last),
        ):
            try:
                # Whole at once, so that a process that dies here leaves nothing that is nobody's.
                self._write(fd, beside, raw)
                os.link(beside, last, src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return self._exclusively(fd, last, raw)
            finally:
                with suppress(OSError):
                    os.unlink(beside, dir_fd=fd)
        return True

    def _write(self, fd: int, name: str, raw: bytes) -> None:
        with closing_fd(self._beneath.create(fd, name, 0o644)) as made:
            pwrite_all(made, raw, 0)

    def _exclusively(self, fd: int, name: str, raw: bytes) -> bool:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            made = os.open(name, flags, 0o644, dir_fd=fd)
        except FileExistsError:
            return False
        try:
            with closing_fd(made):
                pwrite_all(made, raw, 0)
        except OSError:
            with suppress(OSError):
                os.unlink(name, dir_fd=fd)
            raise
        return True

    @override
    def put(self, name: str, raw: bytes) -> None:
        path = f"{FOLDER}/{name}"
        with (
            self._beneath.telling(path, "write"),
            self._beneath.folder(path, make=True) as (fd, last),
            closing_fd(self._beneath.create(fd, last, 0o644)) as made,
        ):
            pwrite_all(made, raw, 0)

    @override
    def renew(self, name: str, raw: bytes) -> None:
        path = f"{FOLDER}/{name}"
        with (
            closing_fd(self._beneath.open(path, os.O_RDWR)) as fd,
            self._beneath.telling(path, "write"),
        ):
            pwrite_all(fd, raw, 0)  # not utime: its time is to be the file server's
            os.fsync(fd)
            if os.fstat(fd).st_nlink == 0:
                raise FileNotFoundError(path)

    @override
    def read(self, name: str) -> bytes:
        with closing_fd(self._beneath.open(f"{FOLDER}/{name}")) as fd:
            return os.pread(fd, LONGEST, 0)

    @override
    def remove(self, name: str) -> None:
        path = f"{FOLDER}/{name}"
        try:
            with self._beneath.telling(path, "write"), self._beneath.folder(path) as (fd, last):
                os.unlink(last, dir_fd=fd)
        except FileNotFoundError:
            return
        except PermissionError as error:
            raise ForbiddenError(f"cannot remove {path}: {error.strerror}") from None


class RemoteLocks(Locks):
    """Lock files that are objects elsewhere."""

    def __init__(self, place: "Place", objects: "Objects") -> None:
        self._place, self._objects = place, objects

    @override
    def list(self) -> dict[str, float]:
        return self._place.ask(lambda: self._objects.times(FOLDER))

    @override
    def create(self, name: str, raw: bytes) -> bool | None:
        return self._place.ask(lambda: self._objects.make(f"{FOLDER}/{name}", raw))

    @override
    def put(self, name: str, raw: bytes) -> None:
        self._place.ask(lambda: self._objects.put_small(f"{FOLDER}/{name}", raw))

    @override
    def renew(self, name: str, raw: bytes) -> None:
        self._place.ask(lambda: self._objects.put_small(f"{FOLDER}/{name}", raw, again=True))

    @override
    def read(self, name: str) -> bytes:
        return self._place.ask(lambda: self._objects.get_small(f"{FOLDER}/{name}", LONGEST))

    @override
    def remove(self, name: str) -> None:
        self._place.ask(lambda: self._objects.delete(f"{FOLDER}/{name}"))
