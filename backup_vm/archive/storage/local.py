# SPDX-License-Identifier: GPL-2.0-or-later
"""An archive in a directory of this machine. Files are written under a temporary name, and renamed
when they are on disk.

Whoever holds the disk can put links, FIFOs and the like into it: every file is opened through
``Beneath``.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from backup_vm.archive.lease_files import FOLDER
from backup_vm.archive.storage.beneath import Beneath
from backup_vm.archive.storage.directory import Directory
from backup_vm.archive.storage.files import ASIDE, LocalNewFile, rename
from backup_vm.archive.storage.interface import TEMPORARY, Storage
from backup_vm.archive.storage.room import Room, room
from backup_vm.archive.storage.workspace import LocalWorkspace
from backup_vm.archive.storage.writing import Blocks
from backup_vm.errors import DamagedError, SparsebakError
from common.durable import closing_fd, pwrite_all, sync_file
from common.existing import exists
from common.override import override

if TYPE_CHECKING:
    from backup_vm.archive.lease_files import Locks


def _nothing() -> None:
    pass


class LocalStorage(Directory, Storage):
    """An archive in a directory of this machine, which is its workspace, too."""

    # Packs of 32 MiB: one is brought to disk while the next fills, without much memory, and an
    # archive has few files. A second one on its way gains nothing on one disk.
    uploads = 1
    readers = 1
    pack_size = 32 << 20
    elsewhere = False

    def __init__(self, root: Path) -> None:
        beneath = Beneath(root)
        self.workspace = LocalWorkspace(beneath, _nothing)
        super().__init__(beneath, _nothing)
        self._blocks = Blocks()

    # One for both, kept by the one that does not know the other: in a cycle the open folder would
    # outlive what nobody uses any more, and keep a disk from being unmounted.
    @property
    def check(self) -> Callable[[], None]:
        """What forbids a change; see Directory."""
        return self.workspace.check

    @check.setter
    def check(self, check: Callable[[], None]) -> None:
        self.workspace.check = check

    @override
    def prepare(self) -> None:
        # What is left of an init that failed half way does not keep the next one from beginning.
        mine = {"lost+found", "archive.toml" + TEMPORARY, FOLDER}
        if exists(self.root) and any(entry.name not in mine for entry in self.root.iterdir()):
            raise SparsebakError(
                f"{self.root} is not empty",
                "choose an empty folder, or one that does not exist yet",
            )
        self.root.mkdir(parents=True, exist_ok=True)

    @override
    def locks(self) -> "Locks":
        from backup_vm.archive.storage.locks import LocalLocks

        return LocalLocks(self._beneath)

    @override
    def refresh(self) -> None:
        """Every look is a new one."""

    @override
    def writable(self) -> bool:
        return os.access(self.root, os.W_OK)

    @override
    def fetch(self, names: list[str]) -> None:
        """They are at hand."""

    @override
    def written(self, folder: str) -> dict[str, float]:
        found = {}
        for name, is_folder in self._beneath.entries(folder):
            if not is_folder:
                with suppress(FileNotFoundError, DamagedError):
                    found[f"{folder}/{name}"] = self._beneath.stat(f"{folder}/{name}").st_mtime
        return found

    @override
    def unreadable(self) -> list[str]:
        return []

    @override
    def ages(self, names: Iterable[str]) -> dict[str, float]:
        return {}

    @override
    def allocated(self, name: str) -> int:
        return self._beneath.stat(name).st_blocks * 512

    @override
    def has_holes(self, name: str) -> bool:
        # Not by blocks alone: those that say where the others are count, too, and what a hole gave
        # back may be no more.
        with closing_fd(self._beneath.open(name)) as fd, self._beneath.telling(name):
            found = os.fstat(fd)
            return found.st_blocks * 512 < found.st_size or (
                os.lseek(fd, 0, os.SEEK_HOLE) < found.st_size
            )

    @override
    def remove_all(self, names: Iterable[str]) -> None:
        self.remove(*names)

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
                    sync_file(fd)
                self.check()
                rename(folder, last)
            except BaseException:
                with suppress(OSError):
                    os.unlink(last + TEMPORARY, dir_fd=folder)
                raise

    @override
    def clean(self) -> None:
        self.workspace.clean()
        folders = ("packs", "volumes", "parity")
        for name in (name for folder in folders for name in self.names(folder, TEMPORARY)):
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
    def capacity(self) -> int | None:
        found = self._room()
        return found and found.capacity

    @override
    def free(self) -> int | None:
        found = self._room()
        return found and found.free

    def _room(self) -> Room | None:
        disk = os.statvfs(self._beneath.fd())
        return room(disk.f_frsize, disk.f_blocks, disk.f_bavail)
