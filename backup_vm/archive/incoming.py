"""Taking in sessions that were made elsewhere: from an exported file, or from another copy of the archive.

Entries come through a partial session, so that what is interrupted goes on where it stopped. A session that comes to lie
between two others changes what the later one builds on, so that that one is first stored as a full one.
"""

from collections.abc import Collection
from contextlib import closing
from typing import NamedTuple

from backup_vm.archive import sessions
from backup_vm.archive.archive import Archive
from backup_vm.archive.format import NO_BASE
from backup_vm.archive.merge import blocks
from backup_vm.archive.partial import SUFFIX, Partial
from backup_vm.archive.prune import drop_partial
from backup_vm.archive.sessions import Session
from backup_vm.archive.store import Store
from backup_vm.errors import SparsebakError
from wire.frames import Offer
from wire.records import read_clear


class Entry(NamedTuple):
    """One entry of a session: ``sealed`` is empty for zeros, and where the archive holds the chunk."""

    number: int
    id: bytes
    sealed: bytes | memoryview


class Incoming:
    """One session on its way in. ``fitting``: session files that are as they should be when it comes before them.

    ``fingerprint``: 16 bytes that are others when the entries are; what was begun with other entries is begun anew.
    """

    def __init__(
        self,
        archive: Archive,
        store: Store,
        record: bytes,
        base: bytes,
        inherit: int,
        fingerprint: bytes,
        fitting: Collection[str] = frozenset(),
    ) -> None:
        self._archive, self._store, self._record = archive, store, record
        self._base, self._inherit, self._fitting = base, inherit, fitting
        clear = self.clear = read_clear(record)
        parameters = archive.parameters
        if clear.archive != parameters.archive or clear.chunk_size != parameters.chunk_size:
            raise SparsebakError(
                f"this session belongs to archive {clear.archive.hex()}, not to {parameters.archive.hex()}",
                "sessions go only into archives of the same key: copies of the archive that they come from",
            )
        self._partial = self._begin(fingerprint)

    def _begin(self, fingerprint: bytes) -> Partial:
        storage, clear = self._archive.storage, self.clear
        name = f"volumes/{clear.volume_id.hex()}/{clear.session.hex()}{SUFFIX}"
        offer = Offer(
            volume_id=clear.volume_id,
            session=clear.session,
            previous=fingerprint,
            sequence=clear.sequence,
            time=clear.time,
            size=clear.size,
            chunk_size=clear.chunk_size,
            changed=0,
            flags=0,
        )
        begun = Partial.load(storage, name) if storage.exists(name) else None
        if begun is not None:
            begun.keep_known(self._archive.catalog)
        if begun is not None and begun.offer != offer:
            self._store.flush()  # or what came of others would seem to be wanted by nobody
            drop_partial(self._archive, begun)
            begun = None
        return begun or Partial.create(storage, offer)

    @property
    def position(self) -> int:
        """The first chunk number that is still wanted."""
        return self._partial.position

    def take(self, entry: Entry) -> None:
        """Take the next entry."""
        self._store.chunk(self._partial, entry.number, entry.id, entry.sealed)

    def finish(self) -> Session:
        """Bring everything to disk and store the session."""
        self._store.flush()
        self._make_room()
        partial = self._partial
        stored = self._archive.store_session(partial, self._record, self._base, self._inherit)
        partial.discard()
        return stored

    def _make_room(self) -> None:
        """If it comes to lie among others: let the one after it build on nothing, for it knows nothing of this one."""
        volume, file = self.clear.volume_id.hex(), sessions.file_name(self.clear)
        series = self._archive.sessions(volume).get(volume, [])
        following = next((session for session in series if session.file > file), None)
        if following is not None and following.inherit and following.file not in self._fitting:
            make_full(self._archive, series, following)

    def close(self) -> None:
        """Leave off; what came is kept, to be gone on with."""
        self._partial.close()


def make_full(archive: Archive, series: list[Session], session: Session) -> None:
    """Store a session anew so that it builds on no other. Its image stays the same."""
    import numpy as np

    image, count = archive.image(series, session), 0
    with closing(archive.storage.scratch()) as numbers, closing(archive.storage.scratch()) as ids:
        for first, window in image.arrays():
            held = np.flatnonzero(window.any(axis=1))
            numbers.write((held + first).astype("<u8").tobytes())
            ids.write(window[held].tobytes())
            count += len(held)
        sessions.write(
            archive.storage, session.record, NO_BASE, 0, count, blocks(numbers), blocks(ids)
        )
