# SPDX-License-Identifier: GPL-2.0-or-later
"""An archive elsewhere: packs and sessions as objects, which ``inventory`` lists, and in the user's
cache (``cache``) copies of them and what belongs to this machine.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, TypeVar

from backup_vm.archive.format import SESSION_HEAD_SIZE, session_size
from backup_vm.archive.lease_files import FOLDER
from backup_vm.archive.storage import WHOLE, NewFile, Reader, Storage
from backup_vm.archive.storage.blocks import Blocks, RemoteReader
from backup_vm.archive.storage.cache import Cache, CacheWorkspace
from backup_vm.archive.storage.inventory import Inventory
from backup_vm.archive.storage.locks import RemoteLocks
from backup_vm.archive.storage.objects import Changed, Entry, Objects, Place
from backup_vm.errors import DamagedError, LockedError, SparsebakError
from common.override import override
from common.pipeline import in_order

Result = TypeVar("Result")
_KEPT, _SESSION = (".session", ".names"), ".session"
"""Objects whose copies are kept, and those of them that say how long they are."""
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
    readers = _THREADS
    pack_size = 64 << 20
    elsewhere = True

    def __init__(self, url: str, objects: Objects) -> None:
        self._url, self._objects, self._place = url, objects, Place(url)
        self.check: Callable[[], None] = lambda: None
        self._cache = Cache(url)
        self.workspace = CacheWorkspace(self._cache)
        self._inventory = Inventory(self._place, objects)
        self._blocks = Blocks(self._exact)

    @override
    def refresh(self) -> None:
        self._inventory.refresh()
        self._cache.listed_again()

    def _entry(self, name: str) -> Entry:
        try:
            return self._inventory.there()[name]
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
        if self._inventory.there().get(name) != entry:
            raise FileNotFoundError(f"{self.describe(name)} is not there any more")
        return self._range(name, offset, length)

    @override
    def describe(self, name: str = "") -> str:
        return f"{self._url}/{name}".rstrip("/")

    @override
    def protect(self, retention: int) -> None:
        self.vault = self._objects.vault(self._place, retention)

    @override
    def prepare(self) -> None:
        # A run that began here a moment ago, or died, has left its lease.
        if not all(name.startswith(f"{FOLDER}/") for name in self._inventory.there()):
            raise SparsebakError(f"{self._url} is not empty", "choose another path")

    @override
    def locks(self) -> "RemoteLocks":
        return RemoteLocks(self._place, self._objects)

    @override
    def writable(self) -> bool:
        return True

    @override
    def exists(self, name: str) -> bool:
        return name in self._inventory.there()

    @override
    def names(self, folder: str, suffix: str) -> list[str]:
        return sorted(name for name in self.sizes(folder) if name.endswith(suffix))

    @override
    def sizes(self, folder: str) -> dict[str, int]:
        return {name: size for name, (size, _) in self.stamps(folder).items()}

    @override
    def stamps(self, folder: str) -> dict[str, tuple[int, str]]:
        return {
            name: (entry.size, entry.version)
            for name, entry in self._inventory.there().items()
            if name.startswith(f"{folder}/") and name.count("/") == 2
        }

    @override
    def written(self, folder: str) -> dict[str, float]:
        found = self._place.ask(lambda: self._objects.times(folder))
        return {f"{folder}/{name}": at for name, at in found.items()}

    @override
    def unreadable(self) -> list[str]:
        self._inventory.there()
        return self._inventory.unreadable

    @override
    def size(self, name: str) -> int:
        return self._entry(name).size

    @override
    def ages(self, names: Iterable[str]) -> dict[str, float]:
        wanted = set(names)
        # What time it is in the store, a lease says: the writer that asks has just renewed its own.
        now = max(self.locks().list().values(), default=0.0) if wanted else 0.0
        found: dict[str, float] = {}
        for folder in {name.rpartition("/")[0] for name in wanted} if now else ():
            times = self._place.ask(partial(self._objects.times, folder))
            found |= {f"{folder}/{last}": now - at for last, at in times.items()}
        return {name: age for name, age in found.items() if name in wanted}

    @override
    def allocated(self, name: str) -> int:
        return self.size(name)

    @override
    def has_holes(self, name: str) -> bool:
        return False

    @override
    def close(self) -> None:
        self.workspace.close()

    @override
    def read(self, name: str, limit: int = WHOLE) -> bytes:
        raw = self._unlisted(name, limit + 1)
        if raw is None:
            raw = self._range(name, 0, limit + 1)  # as large as it is now, not as it was listed
        if len(raw) > limit:
            raise DamagedError(f"{self.describe(name)} is larger than any that is made here")
        return raw

    def _unlisted(self, name: str, limit: int) -> bytes | None:
        """What a run reads before anything else, which need not wait for a listing of many
        requests; None where there is nothing, which a listing tells for certain.
        """
        if limit > _LOOKED_AT or not self._objects.pages or self._inventory.listed:
            return None
        try:
            return self._place.ask(lambda: self._objects.get_small(name, limit))
        except FileNotFoundError:
            return None

    @override
    def open(self, name: str) -> BinaryIO:
        return open(self.local(name), "rb")

    @override
    def local(self, name: str) -> Path:
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
        if not name.endswith(_SESSION) or entry.size <= _LOOKED_AT:
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
        return RemoteReader(self._blocks, name, self._entry(name))

    @override
    def create(self, name: str) -> "_Upload":
        return _Upload(self, name)

    @override
    def write(self, name: str, *parts: bytes, mode: int = 0o644) -> None:
        new = self.create(name)
        new.write(*parts)
        new.finish()

    def upload(self, name: str, path: Path, size: int) -> None:
        """Store a file of this machine under a name, and take it away from here."""
        self.check()
        old = self._inventory.there().get(name)
        version = self._place.ask(lambda: self._objects.put(name, path, old))
        if self.vault is not None:
            self.vault.stored(name)
        entry = Entry(size, version)
        self._inventory.wrote(name, entry)
        if name.endswith(_KEPT):
            self._cache.keep(path, name, entry)
        path.unlink(missing_ok=True)

    @override
    def remove(self, *names: str) -> None:
        for name in names:
            self.check()
            self._place.ask(partial(self._objects.delete, name))
            self._inventory.removed(name)
            self._cache.forget(name)

    @override
    def remove_all(self, names: Iterable[str]) -> None:
        for _ in in_order(self.remove, names, self.readers, 2 * self.readers):
            pass

    @override
    def clean(self) -> None:
        self._cache.clean()
        if any(name.endswith(_LEFT) for name in self._inventory.there()):
            self._place.ask(self._objects.sweep)
            self.refresh()

    @override
    def punch(self, name: str, ranges: list[tuple[int, int]]) -> bool:
        return False

    @override
    def sync(self) -> None:
        """Nothing is written in place."""

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
