"""Where an archive's files lie. Nothing outside this module opens them; names are relative, with slashes.

Files are written once, under a temporary name, and renamed when they are on disk.
"""

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

from backup_vm.errors import LockedError
from wire.durable import Busy, lock, make_directory, sync_directory, write_synced

TEMPORARY = ".tmp"
LOCK = "archive.lock"
_PUNCH_HOLE, _KEEP_SIZE = 0x02, 0x01  # linux/falloc.h


class NewFile:
    """A file being written; it has its name only after ``finish``."""

    def __init__(self, path: Path) -> None:
        self._path, self._temporary = path, path.with_name(path.name + TEMPORARY)
        make_directory(path.parent)
        self._file: BinaryIO = open(self._temporary, "wb", buffering=1 << 20)
        self.size = 0

    def write(self, *parts: bytes) -> None:
        """Append."""
        for part in parts:
            self._file.write(part)
            self.size += len(part)

    def finish(self) -> None:
        """Bring it to disk and give it its name, durably."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self._path)
        sync_directory(self._path.parent)

    def abandon(self) -> None:
        """Remove what was written."""
        with contextlib.suppress(OSError):  # what cannot be flushed is not wanted either
            self._file.close()
        self._temporary.unlink(missing_ok=True)


class LocalStorage:
    """An archive in a directory of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def lock(self, shared: bool) -> int | None:
        """Keep others away, writers (shared) or all; returns a descriptor to close, None where nothing can be written."""
        try:
            fd = lock(self.root / LOCK, shared)
            if not shared:
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            return fd
        except Busy:
            holder = (self.root / LOCK).read_text().strip()
            who = f" (process {holder})" if holder else ""
            raise LockedError(f"{self.root} is in use by another run{who}", "wait for it to end, then try again") from None
        except OSError as error:
            if shared and error.errno in (errno.EROFS, errno.EACCES):
                return None
            raise

    def writable(self) -> bool:
        """Whether files can be written at all."""
        return os.access(self.root, os.W_OK)

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return (self.root / name).exists()

    def names(self, folder: str, suffix: str) -> list[str]:
        """Names of the files two levels below ``folder`` that end in ``suffix``, sorted."""
        found = []
        base = self.root / folder
        for middle in _entries(base):
            if middle.is_dir():
                found += [f"{folder}/{middle.name}/{e.name}" for e in _entries(base / middle.name) if e.name.endswith(suffix)]
        return sorted(found)

    def path(self, name: str) -> Path:
        """A local path to read a file by."""
        return self.root / name

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return (self.root / name).stat().st_size

    def allocated(self, name: str) -> int:
        """Bytes that a file takes up, holes left out."""
        return (self.root / name).stat().st_blocks * 512

    def read(self, name: str) -> bytes:
        """A whole (small) file."""
        return (self.root / name).read_bytes()

    def open(self, name: str) -> int:
        """A descriptor for os.pread, to be closed by the caller."""
        return os.open(self.root / name, os.O_RDONLY | os.O_CLOEXEC)

    def create(self, name: str) -> NewFile:
        """Begin a file."""
        return NewFile(self.root / name)

    def write(self, name: str, *parts: bytes, mode: int = 0o644) -> None:
        """Write a small file at once, atomically."""
        path = self.root / name
        make_directory(path.parent)
        write_synced(path.with_name(path.name + TEMPORARY), *parts, mode=mode)
        os.replace(path.with_name(path.name + TEMPORARY), path)
        sync_directory(path.parent)

    def remove(self, *names: str) -> None:
        """Remove files durably, and folders that become empty."""
        folders = {(self.root / name).parent for name in names}
        for name in names:
            (self.root / name).unlink(missing_ok=True)
        for folder in folders:
            sync_directory(folder)
            if folder != self.root and not any(folder.iterdir()):
                folder.rmdir()

    def clean(self) -> None:
        """Remove temporary files of a run that died."""
        for folder in ("packs", "volumes"):
            for name in self.names(folder, TEMPORARY):
                (self.root / name).unlink(missing_ok=True)

    def punch(self, name: str, ranges: list[tuple[int, int]]) -> bool:
        """Give the space of (offset, length) ranges back; they read as zeros then. False where that is impossible."""
        libc = ctypes.CDLL(None, use_errno=True)
        fd = os.open(self.root / name, os.O_RDWR | os.O_CLOEXEC)
        try:
            for offset, length in ranges:
                mode = _PUNCH_HOLE | _KEEP_SIZE
                if libc.fallocate(fd, mode, ctypes.c_longlong(offset), ctypes.c_longlong(length)) != 0:
                    number = ctypes.get_errno()
                    if number in (errno.EOPNOTSUPP, errno.ENOSYS):
                        return False
                    raise OSError(number, os.strerror(number), str(self.root / name))
            os.fsync(fd)
            return True
        finally:
            os.close(fd)

    def scratch(self) -> IO[bytes]:
        """A temporary file without a name, beside the archive: it may be large, and /tmp is often memory."""
        return tempfile.TemporaryFile(dir=self.root)

    def capacity(self) -> int:
        """Bytes of the whole disk."""
        return shutil.disk_usage(self.root).total

    def free(self) -> int:
        """Bytes that can still be written."""
        return shutil.disk_usage(self.root).free


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from list(entries)
    except FileNotFoundError:
        return
