# SPDX-License-Identifier: GPL-2.0-or-later
"""The files beneath one folder of this machine, as both an archive there and the workspace of one
elsewhere have them.
"""

import io
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from backup_vm.archive.storage.beneath import Beneath, GuardedFile
from backup_vm.archive.storage.files import ASIDE, LocalReader
from backup_vm.archive.storage.interface import UNSEEN, WHOLE, Files
from backup_vm.errors import DamagedError, ForbiddenError
from common.durable import sync_directory_fd
from common.override import override

_VOLUME = re.compile("[0-9a-f]{32}")


class Directory(Files):
    """Files beneath a folder. ``check`` is called before one is removed, and raises what forbids
    it.
    """

    def __init__(self, beneath: Beneath, check: Callable[[], None]) -> None:
        self.root = beneath.root
        self.check = check
        self._beneath = beneath

    @override
    def close(self) -> None:
        self._beneath.close()

    @override
    def describe(self, name: str = "") -> str:
        return str(self.root / name)

    @override
    def exists(self, name: str) -> bool:
        return self._beneath.exists(name)

    @override
    def names(self, folder: str, suffix: str) -> list[str]:
        return sorted(name for name in self.sizes(folder, False) if name.endswith(suffix))

    def sizes(self, folder: str, wanted: bool = True) -> dict[str, int]:
        """Bytes of each file two levels below ``folder``, in no order; -1 of what is no regular
        file. Without ``wanted`` the sizes mean nothing.
        """
        return {name: size for name, (size, _) in self._stamps(folder, wanted).items()}

    def stamps(self, folder: str) -> dict[str, tuple[int, str]]:
        """See Storage."""
        return self._stamps(folder)

    def _stamps(self, folder: str, wanted: bool = True) -> dict[str, tuple[int, str]]:
        found: dict[str, tuple[int, str]] = {}
        for middle, is_folder in self._beneath.entries(folder):
            volume = folder == "volumes" and _VOLUME.fullmatch(middle)
            if not is_folder and not volume:
                continue
            inner = f"{folder}/{middle}"
            try:
                if wanted:
                    for name, size, stamp in self._beneath.stamps(inner):
                        found[f"{inner}/{name}"] = size, stamp
                else:
                    for name, _ in self._beneath.entries(inner):
                        found[f"{inner}/{name}"] = 0, ""
            except DamagedError:
                if volume:
                    # It must not look as if it had no sessions: their chunks would be freed.
                    found[f"{inner}/{UNSEEN}"] = -1, ""
                    continue
                raise
        return found

    @override
    def size(self, name: str) -> int:
        return self._beneath.stat(name).st_size

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
    def open(self, name: str) -> BinaryIO:
        return io.BufferedReader(GuardedFile(self._beneath, name), 1 << 16)

    @override
    def local(self, name: str) -> Path:
        if self.exists(name):
            self._beneath.stat(name)
        return self.root / name

    @override
    def reader(self, name: str) -> LocalReader:
        return LocalReader(self._beneath, name)

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
