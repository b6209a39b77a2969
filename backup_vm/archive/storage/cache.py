# SPDX-License-Identifier: GPL-2.0-or-later
"""What this machine keeps of an archive elsewhere: ``~/.cache/sparsebak/<hash of the URL>/``.

``own/`` (catalog, partial sessions, locks), ``copies/`` (session files as they were fetched) and
``uploads/`` (what is on its way). All of it can be deleted. It is believed only where nobody else
can write; a copy's name carries a checksum of its contents, and a copy that is not what its name
says is fetched again. Where there can be no cache, a folder that goes with the process takes its
place.
"""

import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from backup_vm.archive.storage.beneath import Beneath
from backup_vm.archive.storage.objects import Entry
from backup_vm.archive.storage.workspace import LocalWorkspace
from backup_vm.errors import SparsebakError
from common.durable import make_directory
from common.existing import is_dir
from common.override import override

_COPY = re.compile(r"(?P<of>.+@[0-9a-f]{16})-(?P<checksum>[0-9a-f]{16})", re.DOTALL)
_NO_PLACE = frozenset(
    (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)
    + (errno.ENOENT, errno.EEXIST, errno.ELOOP, errno.EIO)
)
_BLOCK = 1 << 20


def cache_folder(url: str) -> Path:
    """Where this machine keeps its part of the archive at a URL; raise RuntimeError where nobody
    knows a home.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return home / "sparsebak" / hashlib.blake2b(url.encode(), digest_size=16).hexdigest()


class Cache:
    """The folders of one archive."""

    def __init__(self, url: str) -> None:
        self._aside: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.Lock()
        self._sound: set[Path] = set()
        self._passing: set[Path] = set()
        """Copies of objects of which the place tells no version."""
        self._listed: dict[Path, dict[str, set[str]]] = {}
        try:
            self.root = cache_folder(url)
            self._begin()
        except (OSError, RuntimeError) as error:
            if not self._readable(error):
                self.root = self._temporary()
                self._begin()

    def _begin(self) -> None:
        for folder in (self.own, self.copies, self.uploads):
            make_directory(folder)
        if not _ours(self.root):
            raise OSError(errno.EACCES, "it belongs to another user, or others may write to it")

    def _readable(self, error: Exception) -> bool:
        """Whether there is a cache to read, if none to write."""
        return (
            isinstance(error, OSError)
            and error.errno in (errno.EROFS, errno.ENOSPC, errno.EDQUOT)
            and is_dir(self.own)
            and _ours(self.root)
        )

    @property
    def own(self) -> Path:
        """Files that belong to this machine."""
        return self.root / "own"

    @property
    def copies(self) -> Path:
        """Copies of files of the archive."""
        return self.root / "copies"

    @property
    def uploads(self) -> Path:
        """Files on their way to the archive, and from it."""
        return self.root / "uploads"

    def _temporary(self) -> Path:
        with self._lock:
            if self._aside is None:
                try:
                    self._aside = tempfile.TemporaryDirectory(prefix="sparsebak-")
                except OSError as error:
                    raise SparsebakError(
                        f"there is no place for copies of the archive's files: {error.strerror}",
                        "set XDG_CACHE_HOME to a folder with some room",
                    ) from None
            return Path(self._aside.name)

    def cannot(self, error: OSError) -> SparsebakError:
        """What to raise when a file that is to be stored cannot be written here first."""
        what = {
            errno.ENOSPC: "its disk is full",
            errno.EDQUOT: "the quota is used up",
            errno.EROFS: "it is read-only",
        }.get(error.errno or 0, error.strerror or str(error))
        return SparsebakError(
            f"the cache {self.root} cannot be written: {what}",
            "make room there, or set XDG_CACHE_HOME to another folder; what was stored is kept",
        )

    def new(self) -> tuple[Path, IO[bytes]]:
        """A new file for what is to be uploaded."""
        try:
            fd, raw = tempfile.mkstemp(dir=self.uploads)
            return Path(raw), open(fd, "wb", buffering=1 << 20)
        except OSError as error:
            raise self.cannot(error) from None

    def scratch(self) -> IO[bytes]:
        """A temporary file without a name, on the cache's disk where that can be."""
        try:
            return tempfile.TemporaryFile(dir=self.uploads)
        except OSError:
            return tempfile.TemporaryFile(dir=self._temporary())

    def find(self, name: str, entry: Entry) -> Path | None:
        """A sound copy of an object."""
        of = _version(name, entry)
        for base in (self.copies, *self._others()):
            folder = (base / name).parent
            for found in self._there(folder).get(Path(name).name, ()):
                match = _COPY.fullmatch(found)
                if match is None or match["of"] != of:
                    continue
                path = folder / found
                if not entry.version and path not in self._sound:
                    continue  # nothing tells whether the place has another one by now
                # Its checksum is in its name: a copy that was cut short by a crash, or changed by a
                # disk, is none, and nothing needed to be synced when it was written.
                if path in self._sound or _checksum(path, entry.size) == match["checksum"]:
                    self._sound.add(path)
                    return path
        return None

    def _others(self) -> tuple[Path, ...]:
        return () if self._aside is None else (Path(self._aside.name),)

    def _there(self, folder: Path) -> dict[str, set[str]]:
        """Files in a folder of copies by the name of the object; listed once in a run."""
        found = self._listed.get(folder)
        if found is None:
            found = {}
            with suppress(OSError):
                for name in os.listdir(folder):
                    found.setdefault(name.rpartition("@")[0], set()).add(name)
            self._listed[folder] = found
        return found

    def fetch(self, name: str, entry: Entry, get: Callable[[Path], None]) -> Path:
        """Get a copy: complete, or none."""
        try:
            return self._fetch(self.root, name, entry, get)
        except OSError as error:
            if error.errno not in _NO_PLACE or isinstance(error, FileNotFoundError):
                raise
        try:  # no room in the cache
            return self._fetch(self._temporary(), name, entry, get)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise self.cannot(error) from None

    def _fetch(self, root: Path, name: str, entry: Entry, get: Callable[[Path], None]) -> Path:
        folder = root / "copies" if root == self.root else root
        for needed in ((folder / name).parent, self.uploads if root == self.root else root):
            make_directory(needed)
        fd, raw = tempfile.mkstemp(dir=self.uploads if root == self.root else root)
        beside = Path(raw)
        try:
            os.close(fd)
            get(beside)
            checksum = _checksum(beside, entry.size)
            if checksum is None:
                raise SparsebakError(f"{name} was received incompletely")
            return self._keep(folder, beside, name, entry, checksum)
        finally:
            beside.unlink(missing_ok=True)

    def keep(self, path: Path, name: str, entry: Entry) -> None:
        """Keep a file that was uploaded as a copy, if that can be."""
        checksum = _checksum(path, entry.size)
        with suppress(OSError):
            if checksum is not None:
                make_directory((self.copies / name).parent)
                self._keep(self.copies, path, name, entry, checksum)

    def _keep(self, base: Path, path: Path, name: str, entry: Entry, checksum: str) -> Path:
        self.forget(name)
        target = (base / name).parent / f"{_version(name, entry)}-{checksum}"
        os.replace(path, target)
        self._there(target.parent).setdefault(Path(name).name, set()).add(target.name)
        self._sound.add(target)
        if not entry.version:
            self._passing.add(target)
        return target

    def listed_again(self) -> None:
        """The place may have other objects now: believe no copy that no version goes with."""
        self._sound -= self._passing
        self._passing.clear()

    def forget(self, name: str) -> None:
        """Drop the copies of an object, whatever they are."""
        for base in (self.copies, *self._others()):
            folder = (base / name).parent
            for found in self._there(folder).pop(Path(name).name, ()):
                self._sound.discard(folder / found)
                with suppress(OSError):
                    _remove(folder / found)

    def clean(self) -> None:
        """Remove what a run that died has left on its way."""
        with suppress(OSError):
            for left in self.uploads.iterdir():
                _remove(left)


class CacheWorkspace(LocalWorkspace):
    """What belongs to this machine of an archive elsewhere: it is no other machine's to forbid."""

    def __init__(self, cache: Cache) -> None:
        super().__init__(Beneath(cache.own), lambda: None)
        self._cache = cache

    @override
    def lock(self, shared: bool) -> int | None:
        try:
            return super().lock(shared)
        except OSError as error:
            raise self._cache.cannot(error) from None

    @override
    def scratch(self) -> IO[bytes]:
        return self._cache.scratch()


def _version(name: str, entry: Entry) -> str:
    version = hashlib.blake2b(f"{entry.size} {entry.version}".encode(), digest_size=8).hexdigest()
    return f"{Path(name).name}@{version}"


def _ours(folder: Path) -> bool:
    there = os.stat(folder)
    return there.st_uid == os.geteuid() and not there.st_mode & 0o022


def _checksum(path: Path, size: int) -> str | None:
    """Checksum of a file; None where it is none, or has not that size."""
    import xxhash

    state = xxhash.xxh3_64()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb", buffering=0) as file:
            there = os.fstat(fd)
            if not stat.S_ISREG(there.st_mode) or there.st_size != size:
                return None
            while block := file.read(_BLOCK):
                state.update(block)
    except OSError:
        return None
    return state.hexdigest()


def _remove(path: Path) -> None:
    if is_dir(path) and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
