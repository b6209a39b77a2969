# SPDX-License-Identifier: GPL-2.0-or-later
"""One file of an archive in a directory: being written, under a temporary name until it is on disk,
or being read.
"""

import os
from collections.abc import Callable
from contextlib import suppress

from backup_vm.archive.storage import TEMPORARY, NewFile, Reader
from backup_vm.archive.storage.beneath import Beneath
from backup_vm.archive.storage.writing import BackgroundFile, Blocks
from common.durable import sync_directory_fd
from common.override import override

ASIDE = ".old"
"""After the name of a file that is being replaced where nothing can be replaced at once."""


class LocalNewFile(NewFile):
    """A file beside its name, which it takes when it is whole and on disk."""

    def __init__(
        self, beneath: Beneath, name: str, blocks: Blocks, check: Callable[[], None]
    ) -> None:
        self._beneath, self._name, self._check = beneath, name, check
        self.size = 0
        with (
            beneath.telling(name, "write"),
            beneath.folder(name, make=True) as (folder, self._last),
        ):
            self._folder = os.dup(folder)
        try:
            with beneath.telling(name, "write"):
                fd = beneath.create(self._folder, self._last + TEMPORARY)
        except BaseException:
            os.close(self._folder)
            raise
        self._file = BackgroundFile(fd, blocks)

    @override
    def write(self, *parts: bytes | memoryview) -> None:
        with self._beneath.telling(self._name, "write"):
            for part in parts:
                self._file.write(part)
                self.size += len(part)

    @override
    def finish(self) -> None:
        with self._beneath.telling(self._name, "write"):
            self._file.sync()
            self._file.close()
            self._check()
            rename(self._folder, self._last)
            os.close(self._folder)
            self._folder = -1

    @override
    def abandon(self) -> None:
        with suppress(OSError):  # what is removed need not be written
            self._file.close()
        if self._folder >= 0:
            with suppress(OSError):
                os.unlink(self._last + TEMPORARY, dir_fd=self._folder)
            os.close(self._folder)
            self._folder = -1


def rename(folder: int, name: str) -> None:
    """Give a file that is on disk its name, durably."""
    ours = {"src_dir_fd": folder, "dst_dir_fd": folder}
    try:
        os.replace(name + TEMPORARY, name, **ours)
    except FileExistsError:
        # Some FUSE file systems replace nothing: a crash between these two leaves the old file
        # aside.
        os.replace(name, name + ASIDE, **ours)
        os.replace(name + TEMPORARY, name, **ours)
        os.unlink(name + ASIDE, dir_fd=folder)
    sync_directory_fd(folder)


class LocalReader(Reader):
    """A file, open as long as it is read."""

    def __init__(self, beneath: Beneath, name: str) -> None:
        self._beneath, self._name = beneath, name
        self._fd = beneath.open(name)

    @override
    def read(self, offset: int, length: int) -> bytes:
        with self._beneath.telling(self._name):
            raw = os.pread(self._fd, length, offset)
            while len(raw) < length:  # a read may be short before the file's end, too
                more = os.pread(self._fd, length - len(raw), offset + len(raw))
                if not more:
                    break
                raw += more
            return raw

    @override
    def close(self) -> None:
        os.close(self._fd)
