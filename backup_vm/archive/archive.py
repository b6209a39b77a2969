"""An archive that is open: its parameters, sessions and catalog, under its lock."""

import contextlib
import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from backup_vm import stopping
from backup_vm.archive import catalog as catalogs
from backup_vm.archive import packs, parameters, partial, references, sessions
from backup_vm.archive.catalog import Catalog
from backup_vm.archive.image import Image
from backup_vm.archive.lease import Lease
from backup_vm.archive.parameters import Parameters
from backup_vm.archive.partial import Partial
from backup_vm.archive.sessions import Session
from backup_vm.archive.storage import TEMPORARY, Storage, open_storage
from backup_vm.errors import DamagedError, ForbiddenError, SparsebakError

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory

RESCAN = "rescan:"


def rescan_key(volume_id: str) -> str:
    """Key in the catalog's meta table that says: this volume's next session must be a full one."""
    return RESCAN + volume_id


class Archive:
    """See the module. ``writing`` says whether this run may change anything."""

    def __init__(self, storage: Storage, settings: Parameters, writing: bool) -> None:
        self.storage, self.parameters, self.writing = storage, settings, writing
        self._catalog: Catalog | None = None
        self._temporary: TemporaryDirectory[str] | None = None
        self.warnings: list[str] = []
        """What was found wrong and put right on the way, for the user."""
        self.damaged: dict[str, DamagedError] = {}
        """Session files whose head cannot be read, found so far; the sessions that build on them cannot be had."""

    # Sessions

    def newest(self, volume: str) -> Session | None:
        """The newest session of a volume, or None."""
        for name in reversed(self.session_files(volume)):
            session = self._load(name)
            if session is not None:
                return session
        return None

    def _load(self, name: str) -> Session | None:
        try:
            return sessions.load(self.storage, name)
        except DamagedError as error:
            self.damaged[name] = error
            return None

    def session_files(self, volume: str | None = None) -> list[str]:
        """Names of session files, of one volume or all, in order of volume and sequence."""
        found = self.storage.names("volumes", sessions.SUFFIX)
        return found if volume is None else [name for name in found if name.split("/")[1] == volume]

    def sessions(self, volume: str | None = None) -> dict[str, list[Session]]:
        """Sessions by volume id, oldest first. Files that cannot be read are left out, and noted in ``damaged``."""
        found: defaultdict[str, list[Session]] = defaultdict(list)
        files = self.session_files(volume)
        self.storage.fetch(files)
        for name in files:
            session = self._load(name)
            if session is not None:
                found[name.split("/")[1]].append(session)
        for series in found.values():
            series.sort(key=lambda session: session.clear.sequence)
        return dict(found)

    def partials(self) -> list[Partial]:
        """Partial sessions that can be gone on with; those that cannot are removed when writing."""
        found = []
        for name in self.storage.names("volumes", partial.SUFFIX):
            one = Partial.load(self.storage, name)
            if one is not None:
                found.append(one)
            elif self.writing:
                self.storage.remove(name)
        return found

    def image(self, series: list[Session], session: Session) -> Image:
        """The image of a volume at a session of its series; raise DamagedError when one it builds on cannot be read."""
        image = Image(self.storage, series[: series.index(session) + 1])
        for name, error in self.damaged.items():
            if image.first.file < name < session.file and name.split("/")[1] == session.volume:
                raise DamagedError(
                    f"{session.name} builds on a damaged session: {error}",
                    "older sessions can still be had",
                )
        return image

    # Catalog

    @property
    def catalog(self) -> Catalog:
        """The catalog; rebuilt first if it is missing or damaged."""
        if self._catalog is None:
            self._catalog = self._open_catalog()
        return self._catalog

    def _open_catalog(self) -> Catalog:
        try:
            path = self.storage.database(catalogs.NAME)
        except DamagedError as error:  # not even SQLite is let near it
            self.warnings.append(f"{error}; the catalog has been rebuilt")
            return self._rebuilt()
        if path.exists():
            catalog = None
            try:
                catalog = Catalog(path, read_only=not self.storage.writable(), alone=self.writing)
                if catalog.sound_for(self.parameters.archive):
                    return catalog
            except sqlite3.DatabaseError:
                pass
            if catalog is not None:
                catalog.close()
            self.warnings.append(f"{path} was damaged; it has been rebuilt")
        elif self.session_files():
            self.warnings.append(f"{path} was missing; it has been rebuilt")
        return self._rebuilt()

    def rebuild_catalog(self, free: bool = False) -> None:
        """Throw the catalog away and make it anew from packs and sessions; what scrub noted in it is kept.

        With ``free``, chunks that no session refers to are freed. Without, they are only left out, for a session file
        that is missing now may be put back: only a prune gives space back.
        """
        notes: dict[str, str] = {}
        if self._catalog is not None:
            with contextlib.suppress(sqlite3.DatabaseError):
                notes = self._catalog.notes(RESCAN)
            self._catalog.close()
        self._catalog = self._rebuilt(free)
        for key, value in notes.items():
            self._catalog.set_meta(key, value)

    def _rebuilt(self, free: bool = False) -> Catalog:
        if self.writing:
            self.storage.discard(catalogs.NAME + TEMPORARY)
            try:
                path = self.storage.database(catalogs.NAME)
            except DamagedError:
                self.storage.discard(catalogs.NAME)
                path = self.storage.database(catalogs.NAME)
        else:  # others may be reading too, or the disk may be read-only: keep it to ourselves
            self._temporary = catalogs.folder_aside()
            path = Path(self._temporary.name) / catalogs.NAME
        beside = path.with_name(path.name + ".tmp")
        self._build_catalog(beside, free)
        os.replace(beside, path)
        return Catalog(path, alone=True)

    def _build_catalog(self, path: Path, free: bool) -> None:
        catalog = Catalog.create(path, self.parameters.archive)
        catalog.begin()
        numbered = (
            (catalog.add_pack(name), name) for name in self.storage.names("packs", packs.SUFFIX)
        )
        twice = catalog.fill(
            (e.id, number, e.offset, e.length)
            for number, name in numbered
            for e in self._entries(name)
        )
        with packs.PackReader(self.storage) as reader:
            for chunk_id, number, offset, length in twice:
                self._choose(catalog, reader, packs.Packed(chunk_id, offset, length, b""), number)
        self._drop_unreferenced(catalog, free)
        catalog.commit()
        catalog.close()

    def true_catalog_digest(self) -> bytes:
        """The digest that the catalog must have, from packs and sessions; made aside."""
        with catalogs.folder_aside() as folder:
            path = Path(folder) / catalogs.NAME
            warnings = len(self.warnings)
            self._build_catalog(path, free=False)
            del self.warnings[warnings:]
            aside = Catalog(path)
            try:
                return aside.digest()
            finally:
                aside.close()

    def _drop_unreferenced(self, catalog: Catalog, free: bool) -> None:
        """Take what no session refers to out of the catalog; nothing while it is not known what all of them refer to."""
        self.sessions()
        if not self.damaged and catalog.drop_unreferenced(references.ids(self), free) and not free:
            catalog.set_meta("limbo", "rebuilt")

    def _index_pack(self, catalog: Catalog, name: str) -> None:
        number, entries = catalog.add_pack(name), self._entries(name)
        twice = set(
            catalog.add_all(number, [(entry.id, entry.offset, entry.length) for entry in entries])
        )
        with packs.PackReader(self.storage) as reader:
            for entry in entries if twice else ():
                if entry.id in twice:
                    self._choose(catalog, reader, entry, number)

    def _entries(self, name: str) -> list[packs.Packed]:
        try:
            return packs.read_index(self.storage, name, self.parameters.archive)
        except DamagedError as error:
            self.warnings.append(f"{error}; its chunks were found without it")
            return list(packs.scan(self.storage, name, self.parameters.chunk_size))

    @staticmethod
    def _choose(
        catalog: Catalog, reader: packs.PackReader, entry: packs.Packed, number: int
    ) -> None:
        """Two packs have this chunk, and one of the two may be a hole or damaged: keep a sound one."""
        names = catalog.packs()
        other = catalog.places([entry.id])[entry.id]
        if reader.sound(names[number], entry) and not reader.sound(
            other.pack, entry._replace(offset=other.offset)
        ):
            catalog.put(entry.id, number, entry.offset, entry.length)
        catalog.set_meta("limbo", "twice")

    def recover(self) -> None:
        """When writing begins: finish what a run that died left half done."""
        self.storage.clean()
        stored = {
            name.rpartition("-")[2].removesuffix(sessions.SUFFIX) for name in self.session_files()
        }
        left = self.storage.names("volumes", partial.SUFFIX)
        self.storage.remove(
            *(
                name
                for name in left
                if name.rpartition("/")[2].removesuffix(partial.SUFFIX) in stored
            )
        )
        try:
            self._recover_catalog()
        except sqlite3.DatabaseError:
            self.warnings.append(
                f"{self.storage.describe(catalogs.NAME)} was damaged; it has been rebuilt"
            )
            self.rebuild_catalog()
        give_back(self)
        self.catalog.set_meta("sweep", None)

    def _recover_catalog(self) -> None:
        catalog = self.catalog
        known, present = catalog.packs(), set(self.storage.names("packs", packs.SUFFIX))
        lost = {number: name for number, name in known.items() if name not in present}
        unknown = present - set(known.values())
        if not lost and not unknown and catalog.meta("sweep") is None:
            return
        catalog.begin()
        missing: dict[bytes, str] = {}
        for number, name in lost.items():
            missing |= dict.fromkeys(catalog.in_pack(number).values(), name)
            catalog.drop_pack(number)
        for name in sorted(unknown):
            self._index_pack(catalog, name)
        for chunk_id in catalog.places(missing):  # another run had moved them
            del missing[chunk_id]
        for name in sorted(
            {missing[chunk_id] for chunk_id in references.referenced(self, set(missing))}
        ):
            self.warnings.append(f"{self.storage.describe(name)} is missing; run: sparsebak scrub")
        self._drop_unreferenced(catalog, free=catalog.meta("sweep") is not None)
        catalog.commit()

    def close(self) -> None:
        """Close the catalog."""
        if self._catalog is not None:
            self._catalog.close()
            self._catalog = None
        if self._temporary is not None:
            self._temporary.cleanup()


def give_back(archive: Archive) -> int:
    """Give the space of freed chunks back: delete packs that hold nothing else, punch holes into others. Returns bytes."""
    catalog, storage = archive.catalog, archive.storage
    numbers = catalog.packs_with_freed()
    if not numbers:
        return 0
    names = catalog.packs()
    dead = _dead_packs(
        archive, {number: names[number] for number in numbers if not catalog.holds_any(number)}
    )
    given = sum(storage.allocated(name) for name in dead.values() if storage.exists(name))
    if dead:
        try:
            storage.remove(*dead.values())
        except ForbiddenError as error:  # whoever may only add leaves it to whoever may remove
            archive.warnings.append(
                f"{error}; space is given back by a prune that may remove files"
            )
            return 0
        catalog.begin()
        for number in dead:
            catalog.drop_pack(number)
        catalog.commit()
    catalog.begin()
    for number in numbers:
        if number in dead:
            continue
        name, ranges = catalog.freed_in(number)
        if not storage.punch(name, ranges):
            break  # the space comes back when the whole pack is dead
        given += sum(length for _, length in ranges)
        catalog.forget_freed(number)
    storage.sync()  # before the catalog forgets; dying earlier punches them again
    catalog.commit()
    return given


def _dead_packs(archive: Archive, packs_by_number: dict[int, str]) -> dict[int, str]:
    """Those of the packs which no session refers to. The catalog, being a cache, is not believed in this."""
    if not packs_by_number or archive.catalog.meta("limbo") is not None:
        return {}
    held: dict[bytes, set[int]] = {}
    alive: set[int] = set()
    for number, name in packs_by_number.items():
        try:
            for entry in packs.read_index(archive.storage, name, archive.parameters.archive):
                held.setdefault(entry.id, set()).add(number)
        except DamagedError:
            alive.add(number)
    for chunk_id in references.referenced(archive, set(held)):
        if not _sound_elsewhere(archive, chunk_id, held[chunk_id]):
            alive |= held[chunk_id]
    return {number: name for number, name in packs_by_number.items() if number not in alive}


def _sound_elsewhere(archive: Archive, chunk_id: bytes, here: set[int]) -> bool:
    """Whether a pack other than these holds a chunk, undamaged."""
    place = archive.catalog.places([chunk_id]).get(chunk_id)
    numbers = {name: number for number, name in archive.catalog.packs().items()}
    if place is None or numbers[place.pack] in here:
        return False
    with packs.PackReader(archive.storage) as reader:
        return reader.sound(place.pack, packs.Packed(chunk_id, place.offset, place.length, b""))


@contextmanager
def open_archive(location: str | Path, writing: bool, command: str = "") -> Iterator[Archive]:
    """Open and lock the archive in a directory or at a URL: alone for writing, together with other readers otherwise.

    ``command`` is what others are told who want to write meanwhile. Raises LockedError, also later, when a lease is lost.
    """
    storage = open_storage(location)
    with contextlib.closing(storage):
        settings = parameters.load(storage)
        with _locked(storage, writing, command):
            archive = Archive(storage, settings, writing)
            try:
                if writing:
                    archive.recover()
                yield archive
            finally:
                archive.close()


@contextmanager
def _locked(storage: Storage, writing: bool, command: str) -> Iterator[None]:
    """Keep others away: by flock, and with a lease those whom flock does not reach."""
    fd = storage.lock(shared=not writing)
    try:
        if not writing:
            yield
            return
        lease = Lease.acquire(storage.locks(), storage.describe(), command)
        storage.check = lease.check
        try:
            lease.keep()
            storage.refresh()  # what was seen before may be from the midst of another run
            yield
        finally:
            with stopping.closing():
                lease.release()
    finally:
        if fd is not None:
            os.close(fd)


def create_archive(location: str | Path, settings: Parameters) -> None:
    """Make an empty archive in a directory, made if missing, or at a URL; raise SparsebakError where there is one."""
    storage = open_storage(location)
    if storage.exists(parameters.NAME):
        raise SparsebakError(
            f"there is an archive in {storage.describe()} already", "choose an empty directory"
        )
    storage.prepare()
    settings.save(storage)
