"""An archive elsewhere: packs and sessions as objects, and in the user's cache what belongs to this machine.

``~/.cache/sparsebak/<hash of the URL>/`` holds ``own/`` (catalog, partial sessions, locks) and ``copies/`` (session files as
they were fetched, by version). All of it can be deleted: the catalog is then made anew from the packs' indexes, and a session
that was not complete is begun anew. One machine writes to an archive at a time; its lock is in its own cache.
"""

import hashlib
import os
import secrets
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

from backup_vm.archive.storage import TEMPORARY, Reader
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.archive.storage.objects import Entry, Objects, persistently
from backup_vm.errors import SparsebakError
from wire.durable import make_directory

_OWN = (".partial", ".sqlite", ".sqlite-journal", ".lock", TEMPORARY)
_KEPT = ".session"
"""Objects whose copies are kept."""
_BLOCK = 2 << 20
_BLOCKS = 16
_THREADS = 6


def cache_folder(url: str) -> Path:
    """Where this machine keeps its part of the archive at a URL."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "sparsebak" / hashlib.blake2b(url.encode(), digest_size=16).hexdigest()


class RemoteStorage:
    """See Storage."""

    uploads = 4
    pack_size = 64 << 20
    elsewhere = True

    def __init__(self, url: str, objects: Objects) -> None:
        self._url, self._objects = url, objects
        cache = cache_folder(url)
        self._copies, self._uploads = cache / "copies", cache / "uploads"
        for folder in (cache / "own", self._copies, self._uploads):
            make_directory(folder)
        self._own = LocalStorage(cache / "own")
        self._listing: dict[str, Entry] | None = None
        self._blocks = _Blocks(self._range)

    def _is_own(self, name: str) -> bool:
        return name.endswith(_OWN)

    def _there(self) -> dict[str, Entry]:
        """What there is, as listed once and as changed by us since."""
        if self._listing is None:
            self._listing = persistently(self._url, lambda: dict(self._objects.list()))
        return self._listing

    def _entry(self, name: str) -> Entry:
        try:
            return self._there()[name]
        except KeyError:
            raise FileNotFoundError(f"{self.describe(name)} is missing") from None

    def _range(self, name: str, offset: int, length: int) -> bytes:
        length = min(length, self._entry(name).size - offset)
        return (
            persistently(self._url, lambda: self._objects.get_range(name, offset, length))
            if length > 0
            else b""
        )

    def describe(self, name: str = "") -> str:
        """See Storage."""
        return (
            self._own.describe(name)
            if name and self._is_own(name)
            else f"{self._url}/{name}".rstrip("/")
        )

    def prepare(self) -> None:
        """See Storage."""
        if self._there():
            raise SparsebakError(f"{self._url} is not empty", "choose another path")

    def lock(self, shared: bool) -> int | None:
        """See Storage."""
        return self._own.lock(shared)

    def writable(self) -> bool:
        """See Storage."""
        return True

    def exists(self, name: str) -> bool:
        """See Storage."""
        return self._own.exists(name) if self._is_own(name) else name in self._there()

    def names(self, folder: str, suffix: str) -> list[str]:
        """See Storage."""
        if self._is_own(suffix):
            return self._own.names(folder, suffix)
        found = (
            name
            for name in self._there()
            if name.startswith(f"{folder}/") and name.endswith(suffix)
        )
        return sorted(name for name in found if name.count("/") == 2)

    def sizes(self, folder: str) -> dict[str, int]:
        """See Storage."""
        return {
            name: entry.size
            for name, entry in self._there().items()
            if name.startswith(f"{folder}/") and name.count("/") == 2
        }

    def size(self, name: str) -> int:
        """See Storage."""
        return self._own.size(name) if self._is_own(name) else self._entry(name).size

    def allocated(self, name: str) -> int:
        """See Storage."""
        return self.size(name)

    def read(self, name: str) -> bytes:
        """See Storage."""
        return (
            self._own.read(name)
            if self._is_own(name)
            else self._range(name, 0, self._entry(name).size)
        )

    def local(self, name: str) -> Path:
        """See Storage."""
        if self._is_own(name):
            return self._own.local(name)
        entry = self._entry(name)
        path = self._copy(name, entry)
        if not path.exists() or path.stat().st_size != entry.size:
            make_directory(path.parent)
            beside = self._uploads / secrets.token_hex(8)
            persistently(self._url, lambda: self._objects.get(name, beside))
            for old in path.parent.glob(f"{Path(name).name}@*"):
                old.unlink()
            os.replace(beside, path)
        return path

    def _copy(self, name: str, entry: Entry) -> Path:
        version = hashlib.blake2b(
            f"{entry.size} {entry.version}".encode(), digest_size=8
        ).hexdigest()
        return self._copies / f"{name}@{version}"

    def fetch(self, names: list[str]) -> None:
        """See Storage."""
        lacking = [name for name in names if not self._copy(name, self._entry(name)).exists()]
        if len(lacking) > 1:
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(self.local, lacking))

    def reader(self, name: str) -> Reader:
        """See Storage."""
        return _RemoteReader(self._blocks, name, self._entry(name).size)

    def create(self, name: str) -> "_Upload":
        """See Storage."""
        return _Upload(self, name)

    def write(self, name: str, *parts: bytes, mode: int = 0o644) -> None:
        """See Storage."""
        if self._is_own(name):
            self._own.write(name, *parts, mode=mode)
            return
        new = self.create(name)
        new.write(*parts)
        new.finish()

    def upload(self, name: str, path: Path, size: int) -> None:
        """Store a file of this machine under a name, and take it away from here."""
        version = persistently(self._url, lambda: self._objects.put(name, path))
        entry = self._there()[name] = Entry(size, version)
        if name.endswith(_KEPT):
            copy = self._copy(name, entry)
            make_directory(copy.parent)
            os.replace(path, copy)
        else:
            path.unlink()

    def remove(self, *names: str) -> None:
        """See Storage."""
        for name in names:
            if self._is_own(name):
                self._own.remove(name)
                continue
            persistently(self._url, lambda name=name: self._objects.delete(name))  # type: ignore[misc]
            self._there().pop(name, None)
            for copy in (self._copies / name).parent.glob(f"{Path(name).name}@*"):
                copy.unlink()

    def clean(self) -> None:
        """See Storage."""
        self._own.clean()
        for left in self._uploads.iterdir():
            left.unlink()

    def punch(self, name: str, ranges: list[tuple[int, int]]) -> bool:
        """See Storage."""
        return False

    def sync(self) -> None:
        """See Storage."""

    def scratch(self) -> IO[bytes]:
        """See Storage."""
        return tempfile.TemporaryFile(dir=self._uploads)

    def capacity(self) -> int | None:
        """See Storage."""
        return None

    def free(self) -> int | None:
        """See Storage."""
        return None

    def beside(self) -> Path:
        """A new file of this machine, to be uploaded."""
        return self._uploads / secrets.token_hex(8)


class _Upload:
    """See NewFile: written here first, then uploaded whole."""

    def __init__(self, storage: RemoteStorage, name: str) -> None:
        self._storage, self._name, self._path = storage, name, storage.beside()
        self._file = open(self._path, "wb", buffering=1 << 20)
        self.size = 0

    def write(self, *parts: bytes | memoryview) -> None:
        """See NewFile."""
        for part in parts:
            self._file.write(part)
            self.size += len(part)

    def finish(self) -> None:
        """See NewFile."""
        self._file.close()
        self._storage.upload(self._name, self._path, self.size)

    def abandon(self) -> None:
        """See NewFile."""
        self._file.close()
        self._path.unlink(missing_ok=True)


class _Blocks:
    """Blocks of remote files, the ones used last, and of those that are read from start to end also the next one."""

    def __init__(self, fetch: Callable[[str, int, int], bytes]) -> None:
        self.exact = fetch
        self._blocks: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def get(self, name: str, index: int) -> bytes:
        """A block, with the next one on its way."""
        wanted = self._begin(name, index)
        self._begin(name, index + 1)
        return wanted.result()

    def _begin(self, name: str, index: int) -> "Future[bytes]":
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_THREADS)
            key = name, index
            if key not in self._blocks:
                self._blocks[key] = self._pool.submit(self.exact, name, index * _BLOCK, _BLOCK)
                while len(self._blocks) > _BLOCKS:
                    self._blocks.popitem(last=False)
            self._blocks.move_to_end(key)
            return self._blocks[key]


class _RemoteReader:
    """See Reader. What is read on and on is fetched in blocks ahead; what is read here and there, exactly."""

    def __init__(self, blocks: _Blocks, name: str, size: int) -> None:
        self._blocks, self._name, self._size = blocks, name, size
        self._next = 0

    def read(self, offset: int, length: int) -> bytes:
        """See Reader."""
        end = min(offset + length, self._size)
        going_on = 0 <= offset - self._next < _BLOCK
        self._next = end
        if not going_on or length > _BLOCK:
            return self._blocks.exact(self._name, offset, end - offset)
        parts = []
        while offset < end:
            index, within = divmod(offset, _BLOCK)
            part = self._blocks.get(self._name, index)[within : within + end - offset]
            if not part:
                break
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def close(self) -> None:
        """See Reader."""
