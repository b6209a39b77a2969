# SPDX-License-Identifier: GPL-2.0-or-later
"""An archive elsewhere: packs and sessions as objects, and in the user's cache (``cache``) what
belongs to this machine.

What there is, is listed when it is first asked for, and kept right by what we change; ``refresh``
lists again. Names in a listing are the store's word: those that could not be names of files here
are left out.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, BinaryIO, TypeVar

from backup_vm.archive.format import SESSION_HEAD_SIZE, session_size
from backup_vm.archive.storage import TEMPORARY, WHOLE, NewFile, Reader, Storage
from backup_vm.archive.storage.blocks import Blocks, RemoteReader
from backup_vm.archive.storage.cache import Cache
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.archive.storage.locks import RemoteLocks
from backup_vm.archive.storage.objects import Changed, Entry, Objects, Place, can_be_a_name
from backup_vm.errors import DamagedError, LockedError, SparsebakError
from common.override import override

Result = TypeVar("Result")
_OWN = (".partial", ".sqlite", ".sqlite-journal", ".lock", TEMPORARY)
_KEPT = ".session"
"""Objects whose copies are kept."""
_LOOKED_AT = 1 << 20
"""Bytes of one from which on its head is read first: what is no session must not fill this
machine's disk.
"""
_THREADS = 6
_LEFT = (".uploading", ".whole")
"""Ends of names that an upload which was cut leaves (see ``sftp``)."""


class RemoteStorage(Storage):
    """An archive of objects elsewhere, with what this machine keeps of them."""

    # Larger packs than on a disk, for each is a request; and several on their way, for one
    # connection seldom fills a line.
    uploads = 4
    pack_size = 64 << 20
    elsewhere = True

    def __init__(self, url: str, objects: Objects) -> None:
        self._url, self._objects, self._place = url, objects, Place(url)
        self.check: Callable[[], None] = lambda: None
        self._cache = Cache(url)
        self._own = LocalStorage(self._cache.own)
        self._listing: dict[str, Entry] | None = None
        self._unreadable: list[str] = []
        self._written: dict[str, Entry] = {}
        self._removed: dict[str, Entry] = {}
        """What this run did, for a store whose listings come late."""
        self._lock = threading.RLock()
        self._blocks = Blocks(self._exact)

    def _is_own(self, name: str) -> bool:
        return name.endswith(_OWN)

    def _there(self) -> dict[str, Entry]:
        """What there is, as listed once and as changed by us since."""
        with self._lock:
            if self._listing is None:
                self._listing = self._list()
            return self._listing

    def _list(self) -> dict[str, Entry]:
        found = self._place.ask(lambda: dict(self._objects.list()))
        odd = [name for name in found if not can_be_a_name(name)]
        self._unreadable = [*self._objects.unreadable, *odd]
        return {name: entry for name, entry in found.items() if can_be_a_name(name)}

    def refresh(self) -> None:
        """List again: another machine may have added, moved and removed objects. What this run did
        is kept right.
        """
        listed = self._list()
        with self._lock:
            # A listing may be older than what this run did: some stores and their caches say so
            # for minutes.
            for name, entry in self._removed.items():
                if listed.get(name) == entry:
                    del listed[name]
            for name, entry in self._written.items():
                if name not in listed and self._is_there(name, entry):
                    listed[name] = entry
            self._listing = listed

    def _is_there(self, name: str, entry: Entry) -> bool:
        """Whether an object that a listing lacks can be read all the same."""
        if not entry.size:
            return False
        try:
            self._place.ask(lambda: self._objects.get_range(name, entry, 0, 1))
        except (FileNotFoundError, Changed):
            return False
        return True

    def _entry(self, name: str) -> Entry:
        try:
            return self._there()[name]
        except KeyError:
            raise FileNotFoundError(f"{self.describe(name)} is missing") from None

    def _with(self, name: str, action: Callable[[Entry], Result]) -> Result:
        """Do something with an object as it is listed.

        One that is gone or another now is looked for in a new listing, once, before that is called
        damage: another machine may have written or removed it in the meantime.
        """
        entry = self._entry(name)
        try:
            return self._place.ask(lambda: action(entry))
        except (FileNotFoundError, Changed):
            self.refresh()
        entry = self._entry(name)
        try:
            return self._place.ask(lambda: action(entry))
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.describe(name)} is missing") from None
        except Changed:
            raise LockedError(
                f"{self._url} is in use by another run: {name} changes while it is read",
                "let that run end, then try again",
            ) from None

    def _range(self, name: str, offset: int, length: int) -> bytes:
        def get(entry: Entry) -> bytes:
            size = min(length, entry.size - offset)
            return self._objects.get_range(name, entry, offset, size) if size > 0 else b""

        return self._with(name, get)

    def _exact(self, name: str, entry: Entry, offset: int, length: int) -> bytes:
        """A range of an object as it was when it was opened."""
        length = min(length, entry.size - offset)
        if length <= 0:
            return b""
        if self._there().get(name) != entry:
            raise FileNotFoundError(f"{self.describe(name)} is not there any more")
        return self._range(name, offset, length)

    @override
    def describe(self, name: str = "") -> str:
        return (
            self._own.describe(name)
            if name and self._is_own(name)
            else f"{self._url}/{name}".rstrip("/")
        )

    @override
    def prepare(self) -> None:
        if self._there():
            raise SparsebakError(f"{self._url} is not empty", "choose another path")

    @override
    def lock(self, shared: bool) -> int | None:
        try:
            return self._own.lock(shared)
        except OSError as error:
            raise self._cache.cannot(error) from None

    @override
    def locks(self) -> "RemoteLocks":
        return RemoteLocks(self._place, self._objects)

    @override
    def writable(self) -> bool:
        return True

    @override
    def exists(self, name: str) -> bool:
        return self._own.exists(name) if self._is_own(name) else name in self._there()

    @override
    def names(self, folder: str, suffix: str) -> list[str]:
        if self._is_own(suffix):
            return self._own.names(folder, suffix)
        found = (
            name
            for name in self._there()
            if name.startswith(f"{folder}/") and name.endswith(suffix)
        )
        return sorted(name for name in found if name.count("/") == 2)

    @override
    def sizes(self, folder: str) -> dict[str, int]:
        return {
            name: entry.size
            for name, entry in self._there().items()
            if name.startswith(f"{folder}/") and name.count("/") == 2
        }

    @override
    def unreadable(self) -> list[str]:
        self._there()
        return self._unreadable

    @override
    def size(self, name: str) -> int:
        return self._own.size(name) if self._is_own(name) else self._entry(name).size

    @override
    def allocated(self, name: str) -> int:
        return self.size(name)

    @override
    def close(self) -> None:
        self._own.close()

    @override
    def read(self, name: str, limit: int = WHOLE) -> bytes:
        if self._is_own(name):
            return self._own.read(name, limit)
        raw = self._range(name, 0, limit + 1)  # as large as it is now, not as it was listed
        if len(raw) > limit:
            raise DamagedError(f"{self.describe(name)} is larger than any that is made here")
        return raw

    @override
    def open(self, name: str) -> BinaryIO:
        return self._own.open(name) if self._is_own(name) else open(self.local(name), "rb")

    @override
    def own(self, name: str, create: bool = False) -> int:
        return self._own.own(name, create)

    @override
    def database(self, name: str) -> Path:
        return self._own.database(name)

    @override
    def discard(self, name: str) -> None:
        self._own.discard(name)

    @override
    def local(self, name: str) -> Path:
        if self._is_own(name):
            return self._own.local(name)

        def get(entry: Entry) -> Path:
            found = self._cache.find(name, entry)
            if found is not None:
                return found
            self._must_be_session(name, entry)
            return self._cache.fetch(
                name, entry, lambda target: self._objects.get(name, entry, target)
            )

        return self._with(name, get)

    def _must_be_session(self, name: str, entry: Entry) -> None:
        """Raise DamagedError where a large file is not one by its head."""
        if not name.endswith(_KEPT) or entry.size <= _LOOKED_AT:
            return
        try:
            size = session_size(self._objects.get_range(name, entry, 0, SESSION_HEAD_SIZE))
        except ValueError as error:
            raise DamagedError(f"{self.describe(name)} is damaged: {error}") from None
        if size != entry.size:
            raise DamagedError(
                f"{self.describe(name)} is damaged: it has another length than its head says"
            )

    @override
    def fetch(self, names: list[str]) -> None:
        lacking = [name for name in names if self._cache.find(name, self._entry(name)) is None]
        if len(lacking) > 1:
            with ThreadPoolExecutor(_THREADS) as pool:
                for done in [pool.submit(self.local, name) for name in lacking]:
                    try:
                        done.result()
                    except (FileNotFoundError, DamagedError):  # for whoever needs it to find
                        continue
                    except BaseException:
                        pool.shutdown(wait=False, cancel_futures=True)
                        raise

    @override
    def reader(self, name: str) -> Reader:
        if self._is_own(name):
            return self._own.reader(name)
        return RemoteReader(self._blocks, name, self._entry(name))

    @override
    def create(self, name: str) -> "_Upload":
        return _Upload(self, name)

    @override
    def write(self, name: str, *parts: bytes, mode: int = 0o644) -> None:
        if self._is_own(name):
            self._own.write(name, *parts, mode=mode)
            return
        new = self.create(name)
        new.write(*parts)
        new.finish()

    def upload(self, name: str, path: Path, size: int) -> None:
        """Store a file of this machine under a name, and take it away from here."""
        self.check()
        version = self._place.ask(lambda: self._objects.put(name, path))
        entry = Entry(size, version)
        with self._lock:
            self._there()[name] = self._written[name] = entry
        if name.endswith(_KEPT):
            self._cache.keep(path, name, entry)
        path.unlink(missing_ok=True)

    @override
    def remove(self, *names: str) -> None:
        for name in names:
            if self._is_own(name):
                self._own.remove(name)
                continue
            self.check()
            self._place.ask(lambda name=name: self._objects.delete(name))  # type: ignore[misc]
            with self._lock:
                self._written.pop(name, None)
                if (entry := self._there().pop(name, None)) is not None:
                    self._removed[name] = entry
            self._cache.forget(name)

    @override
    def clean(self) -> None:
        self._own.clean()
        self._cache.clean()
        if any(name.endswith(_LEFT) for name in self._there()):
            self._place.ask(self._objects.sweep)
            self.refresh()

    @override
    def punch(self, name: str, ranges: list[tuple[int, int]]) -> bool:
        return False

    @override
    def sync(self) -> None:
        """Nothing is written in place."""

    @override
    def scratch(self) -> IO[bytes]:
        return self._cache.scratch()

    @override
    def capacity(self) -> int | None:
        space = self._place.ask(self._objects.space)
        return space and space.capacity

    @override
    def free(self) -> int | None:
        space = self._place.ask(self._objects.space)
        return space and space.free

    def beside(self) -> tuple[Path, IO[bytes]]:
        """A new file of this machine, to be uploaded."""
        return self._cache.new()

    def cannot(self, error: OSError) -> SparsebakError:
        """What to raise when that file cannot be written."""
        return self._cache.cannot(error)


class _Upload(NewFile):
    """An object that is written here first, then uploaded whole."""

    def __init__(self, storage: RemoteStorage, name: str) -> None:
        self._storage, self._name = storage, name
        self._path, self._file = storage.beside()
        self.size = 0

    @override
    def write(self, *parts: bytes | memoryview) -> None:
        try:
            for part in parts:
                self._file.write(part)
                self.size += len(part)
        except OSError as error:
            raise self._storage.cannot(error) from None

    @override
    def finish(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise self._storage.cannot(error) from None
        self._storage.upload(self._name, self._path, self.size)

    @override
    def abandon(self) -> None:
        with suppress(OSError):  # what is still in memory need not be written
            self._file.close()
        self._path.unlink(missing_ok=True)
