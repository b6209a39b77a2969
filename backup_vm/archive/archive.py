"""An archive that is open: its parameters, sessions and catalog, under its lock."""

import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from backup_vm import stopping
from backup_vm.archive import catalog_file, naming, parameters, partial, reconcile, sessions
from backup_vm.archive.catalog import ChunkCatalog
from backup_vm.archive.format import NO_BASE
from backup_vm.archive.image import Image, chain
from backup_vm.archive.lease import Lease
from backup_vm.archive.parameters import Parameters
from backup_vm.archive.partial import Partial
from backup_vm.archive.sessions import Session
from backup_vm.archive.storage import Storage, open_storage
from backup_vm.errors import DamagedError, ForbiddenError, SparsebakError
from wire.chunks import ID_SIZE, ZERO_ID

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory


class Archive:
    """See the module. ``writing`` says whether this run may change anything."""

    def __init__(self, storage: Storage, settings: Parameters, writing: bool) -> None:
        self.storage, self.parameters, self.writing = storage, settings, writing
        self._catalog: ChunkCatalog | None = None
        self.temporary: TemporaryDirectory[str] | None = None
        """Where a reader has a catalog of its own."""
        self.warnings: list[str] = []
        """What was found wrong and put right on the way, for the user."""
        self.damaged: dict[str, DamagedError] = {}
        """Session files whose head cannot be read, found so far; the sessions that build on them
        cannot be had.
        """
        self.found: dict[str, str] = {}
        """Session files that were found to be spoilt at this opening, and not before, with the
        reason.
        """
        self.lost: list[str] = []
        """Session files, the newest of their volumes, that no prune removed and that are not there
        any more.
        """
        self.derived = False
        """Whether the catalog was made from packs and sessions in this run."""
        self._doubted: ChunkCatalog | None = None
        self._doubting = threading.Lock()
        self.unrecorded = 0
        """Sessions that the catalog does not say it was made for, although they are whole."""

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
        except (DamagedError, OSError) as error:
            self.note_damage(name, error)
            return None

    def note_damage(self, name: str, error: Exception) -> None:
        """Remember that a session file cannot be read."""
        if not isinstance(error, DamagedError):
            text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            error = DamagedError(f"{self.storage.describe(name)} cannot be read: {text}")
        self.damaged[name] = error

    def session_files(self, volume: str | None = None) -> list[str]:
        """Names of session files, of one volume or all, in order of volume and sequence."""
        found = self.storage.names("volumes", sessions.SUFFIX)
        if volume is not None:
            found = [name for name in found if name.startswith(f"volumes/{volume}/")]
        return naming.sessions_in(found)

    def pack_files(self) -> list[str]:
        """Names of packs."""
        return naming.packs_in(self.storage.names("packs", ".pack"))

    def sessions(self, volume: str | None = None) -> dict[str, list[Session]]:
        """Sessions by volume id, oldest first. Files that cannot be read are left out, and noted in
        ``damaged``.
        """
        found: defaultdict[str, list[Session]] = defaultdict(list)
        files = self.session_files(volume)
        self.storage.fetch(files)
        for name in files:
            session = self._load(name)
            if session is not None:
                found[naming.volume_of(name)].append(session)
        for series in found.values():
            series.sort(key=lambda session: session.clear.sequence)
        return dict(found)

    def cut_off(self, volumes: dict[str, list[Session]]) -> dict[str, str]:
        """Of these sessions those that build, at whatever remove, on one that is missing or
        damaged, with the reason.
        """
        found: dict[str, str] = {}
        for series in volumes.values():
            whole: set[bytes] = set()
            for session in series:
                if session.full or session.base in whole:
                    whole.add(session.clear.session)
                else:
                    base = next((s.name for s in series if s.clear.session == session.base), None)
                    found[session.file] = (
                        f"session {session.name} builds on {base}, which lacks what it builds on"
                        if base
                        else (
                            f"session {session.name} builds on {session.base.hex()}, which is "
                            "missing or damaged"
                        )
                    )
        return found

    def uncertain(self) -> list[str]:
        """Why it is not known what all sessions refer to; then nothing may be freed."""
        volumes = self.sessions()
        lost = [f"{self.storage.describe(name)} is missing" for name in self.lost]
        return [*lost, *map(str, self.damaged.values()), *self.cut_off(volumes).values()]

    def partials(self) -> list[Partial]:
        """Partial sessions to be resumed, from where not all of their chunks are stored; when
        writing, others are removed.
        """
        if self.writing:
            partial.adopt(self.storage)
        found = []
        for name in filter(naming.is_partial, self.storage.names("volumes", partial.SUFFIX)):
            one = Partial.load(self.storage, name)
            if one is not None:
                one.keep_known(self.catalog)
                found.append(one)
            elif self.writing:
                self.storage.remove(name)
        return found

    def store_session(self, complete: Partial, record: bytes, base: bytes, inherit: int) -> Session:
        """Make a session of a partial one that is complete; raise DamagedError if not every chunk
        of it is stored.

        What it inherits is there, or its volume would have been marked to be compared in full.
        """
        count = lacking = 0
        for raw in complete.ids():
            ids = {raw[at : at + ID_SIZE] for at in range(0, len(raw), ID_SIZE)} - {ZERO_ID}
            lacking += self.catalog.lacking(ids)
            count += len(raw) // ID_SIZE
        if lacking or count != complete.count:
            raise DamagedError(
                f"{self.storage.describe(complete.name)} lists {lacking or complete.count - count} "
                "chunks that are not stored; no session was made of it",
                "run: sparsebak backup again; it sends them again",
            )
        self.unrecorded += 1
        return sessions.write(
            self.storage, record, base, inherit, count, complete.numbers(), complete.ids()
        )

    def image(self, series: list[Session], session: Session) -> Image:
        """The image of a volume at a session of its series; raise DamagedError when one it builds
        on is not there.
        """
        found, missing = chain(series, session)
        if missing == NO_BASE:
            return Image(self.storage, found)
        ending = f"-{missing.hex()}{sessions.SUFFIX}"
        for name, error in self.damaged.items():
            if name.endswith(ending):
                raise DamagedError(
                    f"{session.name} builds on a damaged session: {error}",
                    "sessions that do not build on it can still be had",
                )
        raise DamagedError(
            f"{session.name} builds on session {missing.hex()} (after it: {found[0].name}), whose"
            " file is missing",
            "put it back from a copy of the archive; the next backup compares everything again",
        )

    # Catalog

    @property
    def catalog(self) -> ChunkCatalog:
        """The catalog, brought to what there is in the store; made again if it is missing or
        damaged.
        """
        if self._catalog is None:
            self._catalog = reconcile.open_catalog(self, reconcile.Listing.of(self.storage))
        return self._catalog

    def work_aside(self) -> None:
        """Where the archive cannot be written to: note what is found in a copy of the catalog,
        which goes at the end.
        """
        self._catalog = reconcile.open_catalog(self, reconcile.Listing.of(self.storage), aside=True)

    def rebuild_catalog(self) -> None:
        """Make the catalog again from packs and sessions; what is marked in it is kept."""
        known = reconcile.Remembered.of(self._catalog)
        if self._catalog is not None:
            self._catalog.close()
            self._catalog = None
        self._catalog = reconcile.rebuild(self, reconcile.Listing.of(self.storage), known)

    def doubt_catalog(self) -> bool:
        """A reader found the catalog to lie: make another, aside, once. Whether that was done, now
        or before.

        The one that lies stays open until the end, for other threads may be at it.
        """
        with self._doubting:
            if self._doubted is None and not self.writing and not self.derived:
                where = self.storage.describe(catalog_file.NAME)
                self.warnings.append(f"{where} does not say where chunks are; run: sparsebak scrub")
                now = reconcile.Listing.of(self.storage)
                self._doubted, self._catalog = (
                    self._catalog,
                    reconcile.rebuild(self, now, reconcile.Remembered.of(self._catalog)),
                )
            return self._doubted is not None

    def recover(self) -> None:
        """When writing begins: finish what a run that died left half done."""
        from backup_vm.archive.reclaim import reclaim

        self.storage.clean()
        now = reconcile.Listing.of(self.storage)
        stored = {naming.session_of(name) for name in now.files if naming.is_session(name)}
        left = [n for n in now.files if not naming.is_session(n) and naming.session_of(n) in stored]
        if left:
            with suppress(ForbiddenError):  # whoever may only add leaves it to whoever may remove
                self.storage.remove(*left)
            now = reconcile.Listing.of(self.storage)
        self._catalog = reconcile.open_catalog(self, now)
        if self._catalog.marks.reclaiming:
            reclaim(self)

    def record(self) -> None:
        """At the end of a run: the catalog is made for the files that there are now.

        A run that stored few sessions and nothing else need not wait for the disk: the next one
        looks through these.
        """
        catalog = self._catalog
        if catalog is None or not self.writing:
            return
        if not catalog.written and self.unrecorded <= reconcile.UNRECORDED:
            return
        now, then = reconcile.Listing.of(self.storage).files, catalog.files()
        now |= {name: size for name, size in then.items() if name in self.damaged and name in now}
        if now != then:
            catalog.begin()
            catalog.set_files(now)
            catalog.commit()

    def close(self) -> None:
        """Close the catalog."""
        for catalog in (self._catalog, self._doubted):
            if catalog is not None:
                catalog.close()
        self._catalog = self._doubted = None
        if self.temporary is not None:
            self.temporary.cleanup()
            self.temporary = None


@contextmanager
def open_archive(
    location: str | Path, writing: bool | None, command: str = ""
) -> Iterator[Archive]:
    """Open and lock the archive in a directory or at a URL: alone for writing, together with other
    readers otherwise.

    ``writing``: None for what notes its findings where it can, and reads all the same where not.
    ``command`` is what others are told who want to write meanwhile. Raises LockedError, also later,
    when a lease is lost.
    """
    storage = open_storage(location)
    with closing(storage):
        settings = parameters.load(storage)
        alone = storage.writable() if writing is None else writing
        with _locked(storage, alone, command):
            archive = Archive(storage, settings, alone)
            try:
                if alone:
                    archive.recover()
                elif writing is None:
                    archive.work_aside()
                yield archive
                archive.record()
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
    """Make an empty archive in a directory, made if missing, or at a URL; raise SparsebakError
    where there is one.
    """
    storage = open_storage(location)
    if storage.exists(parameters.NAME):
        raise SparsebakError(
            f"there is an archive in {storage.describe()} already", "choose an empty directory"
        )
    storage.prepare()
    settings.save(storage)
