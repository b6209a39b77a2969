"""An archive in a directory of this machine. Files are written under a temporary name, and renamed when they are on disk."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from backup_vm.archive.storage import LOCK, TEMPORARY
from backup_vm.archive.storage.writing import BackgroundFile, Blocks
from backup_vm.errors import ForbiddenError, LockedError, SparsebakError
from wire.durable import Busy, lock, make_directory, sync_directory, write_synced


class LocalNewFile:
    """See NewFile."""

    def __init__(self, path: Path, blocks: Blocks) -> None:
        self._path, self._temporary = path, path.with_name(path.name + TEMPORARY)
        make_directory(path.parent)
        self._file = BackgroundFile(self._temporary, blocks)
        self.size = 0

    def write(self, *parts: bytes | memoryview) -> None:
        """See NewFile."""
        for part in parts:
            self._file.write(part)
            self.size += len(part)

    def finish(self) -> None:
        """See NewFile."""
        self._file.sync()
        self._file.close()
        os.replace(self._temporary, self._path)
        sync_directory(self._path.parent)

    def abandon(self) -> None:
        """See NewFile."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


class LocalReader:
    """See Reader."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, length: int) -> bytes:
        """See Reader."""
        return os.pread(self._fd, length, offset)

    def close(self) -> None:
        """See Reader."""
        os.close(self._fd)


class LocalStorage:
    """See Storage."""

    uploads = 1
    pack_size = 32 << 20
    elsewhere = False

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blocks = Blocks()

    def describe(self, name: str = "") -> str:
        """See Storage."""
        return str(self.root / name)

    def prepare(self) -> None:
        """See Storage."""
        if self.root.exists() and any(entry.name != "lost+found" for entry in self.root.iterdir()):
            raise SparsebakError(
                f"{self.root} is not empty",
                "choose an empty directory, or one that does not exist yet",
            )
        self.root.mkdir(parents=True, exist_ok=True)

    def lock(self, shared: bool) -> int | None:
        """See Storage."""
        try:
            fd = lock(self.root / LOCK, shared)
            if not shared:
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            return fd
        except Busy:
            holder = (self.root / LOCK).read_text().strip()
            who = f" (process {holder})" if holder else ""
            raise LockedError(
                f"{self.root} is in use by another run{who}", "wait for it to end, then try again"
            ) from None
        except OSError as error:
            if shared and error.errno in (errno.EROFS, errno.EACCES):
                return None
            raise

    def writable(self) -> bool:
        """See Storage."""
        return os.access(self.root, os.W_OK)

    def exists(self, name: str) -> bool:
        """See Storage."""
        return (self.root / name).exists()

    def names(self, folder: str, suffix: str) -> list[str]:
        """See Storage."""
        found = []
        base = self.root / folder
        for middle in _entries(base):
            if middle.is_dir():
                found += [
                    f"{folder}/{middle.name}/{e.name}"
                    for e in _entries(base / middle.name)
                    if e.name.endswith(suffix)
                ]
        return sorted(found)

    def sizes(self, folder: str) -> dict[str, int]:
        """See Storage."""
        found: dict[str, int] = {}
        for middle in _entries(self.root / folder):
            if not middle.is_dir(follow_symlinks=False):
                continue
            for entry in _entries(self.root / folder / middle.name):
                # one that vanishes meanwhile is another program's, or a temporary file's
                with contextlib.suppress(FileNotFoundError):
                    found[f"{folder}/{middle.name}/{entry.name}"] = (
                        entry.stat(follow_symlinks=False).st_size
                        if entry.is_file(follow_symlinks=False)
                        else -1
                    )
        return found

    def local(self, name: str) -> Path:
        """See Storage."""
        return self.root / name

    def fetch(self, names: list[str]) -> None:
        """See Storage. They are at hand."""

    def reader(self, name: str) -> LocalReader:
        """See Storage."""
        return LocalReader(self.root / name)

    def size(self, name: str) -> int:
        """See Storage."""
        return (self.root / name).stat().st_size

    def allocated(self, name: str) -> int:
        """See Storage."""
        return (self.root / name).stat().st_blocks * 512

    def read(self, name: str) -> bytes:
        """See Storage."""
        return (self.root / name).read_bytes()

    def create(self, name: str) -> LocalNewFile:
        """See Storage."""
        return LocalNewFile(self.root / name, self._blocks)

    def write(self, name: str, *parts: bytes, mode: int = 0o644) -> None:
        """See Storage."""
        path = self.root / name
        make_directory(path.parent)
        write_synced(path.with_name(path.name + TEMPORARY), *parts, mode=mode)
        os.replace(path.with_name(path.name + TEMPORARY), path)
        sync_directory(path.parent)

    def remove(self, *names: str) -> None:
        """See Storage."""
        folders = {(self.root / name).parent for name in names}
        try:
            for name in names:
                (self.root / name).unlink(missing_ok=True)
        except PermissionError as error:
            raise ForbiddenError(f"cannot remove {error.filename}: {error.strerror}") from None
        for folder in filter(Path.is_dir, folders):
            sync_directory(folder)
            if folder != self.root and not any(folder.iterdir()):
                folder.rmdir()

    def clean(self) -> None:
        """See Storage."""
        for folder in ("packs", "volumes"):
            for name in self.names(folder, TEMPORARY):
                (self.root / name).unlink(missing_ok=True)

    def punch(self, name: str, ranges: list[tuple[int, int]]) -> bool:
        """See Storage."""
        from backup_vm.archive.storage import libc

        return libc.punch(self.root / name, ranges)

    def sync(self) -> None:
        """See Storage."""
        from backup_vm.archive.storage import libc

        libc.syncfs(self.root)

    def scratch(self) -> IO[bytes]:
        """See Storage."""
        import tempfile

        return tempfile.TemporaryFile(dir=self.root)

    def capacity(self) -> int:
        """See Storage."""
        disk = os.statvfs(self.root)
        return disk.f_blocks * disk.f_frsize

    def free(self) -> int:
        """See Storage."""
        disk = os.statvfs(self.root)
        return disk.f_bavail * disk.f_frsize


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from list(entries)
    except FileNotFoundError:
        return
