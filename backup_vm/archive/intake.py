# SPDX-License-Identifier: GPL-2.0-or-later
"""Taking in sessions that were made elsewhere: from an exported file, or from another copy of the
archive.

Entries come through a partial session, so that what is interrupted resumes where it stopped.
"""

from typing import NamedTuple

from backup_vm.archive.archive import Archive
from backup_vm.archive.pack_writer import PackWriter
from backup_vm.archive.partial import SUFFIX, Partial
from backup_vm.archive.prune import drop_partial
from backup_vm.archive.sessions import Session
from backup_vm.errors import DamagedError, SparsebakError
from wire import LAST_SEQUENCE
from wire.messages import Offer
from wire.records import read_clear


class Entry(NamedTuple):
    """One entry of a session: ``sealed`` is empty for zeros, and where the archive holds
    the chunk.
    """

    number: int
    id: bytes
    sealed: bytes | memoryview


class Incoming:
    """One session on its way in. What it builds on (``base``) must be in the archive, complete.

    ``fingerprint``: 16 bytes that differ when the entries do; what was begun with others is begun
    again. Raises SparsebakError for a session of another archive.
    """

    def __init__(
        self,
        archive: Archive,
        writer: PackWriter,
        record: bytes,
        base: bytes,
        inherit: int,
        fingerprint: bytes,
    ) -> None:
        self._archive, self._writer, self._record = archive, writer, record
        self._base, self._inherit = base, inherit
        clear = self.clear = read_clear(record)
        parameters = archive.parameters
        if clear.archive != parameters.archive or clear.chunk_size != parameters.chunk_size:
            raise SparsebakError(
                f"this session belongs to archive {clear.archive.hex()}, not to"
                f" {parameters.archive.hex()}",
                "sessions go only into archives of the same key: copies of the archive that they"
                " come from",
            )
        if clear.sequence > LAST_SEQUENCE:
            raise DamagedError(f"this session claims an impossible number, {clear.sequence}")
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
            self._writer.flush()  # or what came of others would seem to be wanted by nobody
            drop_partial(self._archive, begun)
            begun = None
        return begun or Partial.create(storage, offer)

    @property
    def position(self) -> int:
        """The first chunk number that is still wanted."""
        return self._partial.position

    def take(self, entry: Entry) -> None:
        """Take the next entry."""
        self._writer.chunk(self._partial, entry.number, entry.id, entry.sealed)

    def finish(self) -> Session:
        """Bring everything to disk and store the session."""
        self._writer.flush()
        partial = self._partial
        stored = self._archive.store_session(partial, self._record, self._base, self._inherit)
        partial.discard()
        return stored

    def give_up(self) -> None:
        """Forget what came; it cannot be made complete.

        What waits for a pack to be on disk is written first: it belongs to this session, too.
        """
        self._writer.flush()
        drop_partial(self._archive, self._partial)

    def close(self) -> None:
        """Leave off; what came is kept, to be resumed."""
        self._partial.close()
