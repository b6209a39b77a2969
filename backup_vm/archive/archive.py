# SPDX-License-Identifier: GPL-2.0-or-later
"""An archive that is open: its parameters, sessions and catalog, under its lock."""

import sqlite3
import threading
from collections import defaultdict
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from backup_vm.archive import catalog_file, losses, naming, partial, reconcile, sessions
from backup_vm.archive.catalog import ChunkCatalog
from backup_vm.archive.format import NO_BASE
from backup_vm.archive.image import Image, chain
from backup_vm.archive.listing import Listing
from backup_vm.archive.looking import Looking
from backup_vm.archive.parameters import Parameters
from backup_vm.archive.partial import Partial
from backup_vm.archive.remembered import Remembered
from backup_vm.archive.sessions import Session
from backup_vm.archive.storage import UNSEEN, Storage
from backup_vm.errors import DamagedError
from wire.chunks import ID_SIZE, ZERO_ID

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory


class Archive:
    """See the module. ``writing`` says whether this run may change anything."""

    def __init__(self, storage: Storage, parameters: Parameters, writing: bool) -> None:
        self.storage, self.parameters, self.writing = storage, parameters, writing
        self.open_catalog: ChunkCatalog | None = None
        """The catalog, if this run has needed it yet; see ``catalog``."""
        self.temporary: TemporaryDirectory[str] | None = None
        """Where a reader has a catalog of its own, and a writer one that was moved."""
        self.cramped = False
        """Whether the catalog was moved, because its disk has no room; see cramped.py."""
        self.warnings: list[str] = []
        """What was found wrong and put right on the way, for the user."""
        self.alarms: list[str] = []
        """Those of the warnings that say what is spoilt or lost: what is mended makes them untrue.
        """
        self.pack_size: int | None = None
        """Bytes of the packs of this run, if that was asked for; see pack_size.py."""
        self.left_dead = False
        """Whether a reclaim left space as it was, for want of room to give it back."""
        self.left_listed = False
        """Whether a reclaim left chunks in the catalog to which perhaps nothing refers, for want of
        knowing it.
        """
        self.touched: set[str] = set()
        """Files that this run changed under their names: packs by holes, sessions by merging."""
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
        self._doubted = False
        self._doubting = threading.Lock()
        self._past: list[tuple[ChunkCatalog | None, TemporaryDirectory[str] | None]] = []
        """Catalogs that others have taken the place of: other threads may be at them."""
        self.looking = Looking(self)
        self.unrecorded = 0
        """Sessions that the catalog does not say it was made for, although they are whole."""

    # Sessions

    def newest(self, volume: str, files: list[str] | None = None) -> Session | None:
        """The newest session of a volume, or None. ``files``: those of its sessions, where they
        were listed already.
        """
        for name in reversed(self.session_files(volume) if files is None else files):
            session = self._load(name)
            if session is not None:
                return session
        return None

    def _load(self, name: str) -> Session | None:
        session = None
        try:
            session = sessions.load(self.storage, name)
        except (DamagedError, OSError) as error:
            self.note_damage(name, error)
        self.looking.saw(name, session)
        return session

    def note_damage(self, name: str, error: Exception) -> None:
        """Remember that a session file cannot be read."""
        if not isinstance(error, DamagedError):
            text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            error = DamagedError(f"{self.storage.describe(name)} cannot be read: {text}")
        if name.endswith(UNSEEN):
            where = self.storage.describe(name.rpartition("/")[0])
            error = DamagedError(f"{where} cannot be read: its sessions are not known")
        self.damaged[name] = error

    def session_files(self, *volumes: str) -> list[str]:
        """Names of session files, of these volumes or all, in order of volume and sequence."""
        found, wanted = self.storage.names("volumes", sessions.SUFFIX), frozenset(volumes)
        if wanted:
            found = [name for name in found if naming.volume_of(name) in wanted]
        return naming.sessions_in(found)

    def pack_files(self) -> list[str]:
        """Names of packs."""
        return naming.packs_in(self.storage.names("packs", ".pack"))

    def parity_files(self) -> list[str]:
        """Names of parity files."""
        return list(filter(naming.is_parity, self.storage.names(naming.PARITY, ".parity")))

    def sessions(self, *volumes: str) -> dict[str, list[Session]]:
        """Sessions of these volumes, or of all, by volume id, oldest first. Files that cannot be
        read are left out, and noted in ``damaged``.
        """
        return self.looking.steady(lambda: self._sessions(*volumes))

    def _sessions(self, *volumes: str) -> dict[str, list[Session]]:
        found: defaultdict[str, list[Session]] = defaultdict(list)
        files = self.session_files(*volumes)
        with suppress(FileNotFoundError):  # found below
            self.storage.fetch(files)
        for name in files:
            session = self._load(name)
            if session is not None:
                found[naming.volume_of(name)].append(session)
        for series in found.values():
            series.sort(key=lambda session: session.clear.sequence)
            sessions.tell_apart(series)
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

    def missing(self, volume: str | None = None) -> list[str]:
        """A line for each session, of one volume or all, that is known to be lost: in a local
        archive the catalog remembers what nothing builds on.
        """
        if not self.storage.elsewhere and self.storage.workspace.exists(catalog_file.NAME):
            _ = self.catalog  # one that would have to be made first knows of none
        lost = [one for one in self.lost if volume in (None, naming.volume_of(one))]
        return [f"{self.storage.describe(name)} is missing" for name in lost]

    def lost_newest(self, volume: str) -> str | None:
        """A line if the newest session of a volume is known to be lost, also since an earlier run,
        and none was stored since.
        """
        for line in self.missing(volume):
            return line
        catalog = None if self.storage.elsewhere else self.open_catalog
        if catalog is None:
            return None
        lost = losses.lost_newest(catalog, self.session_files(volume)).get(volume)
        return None if lost is None else f"{self.storage.describe(lost)} is missing"

    def partials(self) -> list[Partial]:
        """Partial sessions to be resumed, from where not all of their chunks are stored; when
        writing, others are removed.
        """
        if self.writing:
            partial.adopt(self.storage)
        found, workspace = [], self.storage.workspace
        for name in filter(naming.is_partial, workspace.names("volumes", partial.SUFFIX)):
            one = Partial.load(self.storage, name)
            if one is not None:
                one.keep_known(self.catalog)
                found.append(one)
            elif self.writing:
                # What is no file stays, and is named by scrub: it keeps no other volume waiting.
                with suppress(DamagedError):
                    workspace.remove(name)
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
        on is not there, RemovedError when another machine has removed it.
        """
        found = self.looking.steady(lambda: self.chain(series, session))
        return Image(self.storage, found, self)

    def chain(self, series: list[Session], session: Session) -> list[Session]:
        """The sessions that an image is made of, the one that builds on nothing first. Raises as
        ``image``.
        """
        series = self.looking.series(series, session)
        session = next((one for one in series if one.file == session.file), session)
        found, missing = chain(series, session)
        if missing == NO_BASE:
            return found
        ending = f"-{missing.hex()}{sessions.SUFFIX}"
        for name, error in self.damaged.items():
            if name.endswith(ending):
                raise DamagedError(
                    f"{session.name} builds on a damaged session: {error}",
                    "sessions that do not build on it can still be restored",
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
        if self.open_catalog is None:
            try:
                self.open_catalog = self.looking.catalog()
            except sqlite3.Error as error:
                if self.temporary is None or catalog_file.is_damage(error):
                    raise
                raise catalog_file.explain(error, self.temporary.name) from None
        return self.open_catalog

    def forget_findings(self) -> bool:
        """Another machine has changed what there is: what was found wrong says nothing. Returns
        whether a catalog is open.
        """
        self.damaged, self.found, self.lost = {}, {}, []
        self._doubted = self.derived = False
        self._past.append((None, self.temporary))
        self.temporary = None
        return self.open_catalog is not None

    def moved(self, name: str) -> Path | None:
        """Where a file is that was moved, because its disk has no room; None where none was."""
        return Path(self.temporary.name) / name if self.cramped and self.temporary else None

    def replace_catalog(self, catalog: ChunkCatalog) -> None:
        """Use another one from here on; the one before stays open until the end."""
        self._past.append((self.open_catalog, None))
        self.open_catalog = catalog

    def rebuild_catalog(self) -> None:
        """Make the catalog again from packs and sessions; what is marked in it is kept."""
        self._make_again(Remembered.of(self.open_catalog))

    def _make_again(self, known: Remembered) -> ChunkCatalog:
        """Make a catalog that knows what the one before knew, in its place."""
        if self.open_catalog is not None:
            self.open_catalog.close()
            self.open_catalog = None
        self.open_catalog = reconcile.rebuild(self, Listing.of(self.storage), known)
        return self.open_catalog

    def mended(self, files: Collection[str]) -> None:
        """Make the catalog again, for these files are whole again: what was known to be spoilt is
        found out again from what there is. What was reclaimed of them is to be reclaimed again.
        """
        rotten = tuple(place for place in self.catalog.rotten() if place[0] not in files)
        known = Remembered(rotten=rotten, lasting=self.catalog.lasting(), entire=True)
        self.forget_findings()
        self.warnings = [one for one in self.warnings if one not in self.alarms]
        self.alarms = []
        self._make_again(known).marks.unclaimed = True

    def doubt_catalog(self) -> bool:
        """A reader found the catalog to be wrong: make another, aside, once. Whether that was done,
        now or before.

        The wrong one stays open until the end, for other threads may be at it.
        """
        with self._doubting:
            if not self._doubted and not self.writing and not self.derived:
                where = self.storage.workspace.describe(catalog_file.NAME)
                self.warnings.append(f"{where} does not say where chunks are; run: sparsebak scrub")
                now = Listing.of(self.storage)
                known = Remembered.of(self.open_catalog)
                self.replace_catalog(reconcile.rebuild(self, now, known))
                self._doubted = True
            return self._doubted

    def close(self) -> None:
        """Close the catalog."""
        for catalog, folder in (*self._past, (self.open_catalog, self.temporary)):
            if catalog is not None:
                catalog.close()
            if folder is not None:
                folder.cleanup()
        self._past, self.open_catalog, self.temporary = [], None, None
