# SPDX-License-Identifier: GPL-2.0-or-later
"""What dom0 knows of a volume's present contents without reading them, so that a restore need take
only what differs.

The contents are those of the session committed last, of which the chunk ids are here, but for what
changed since. All of that is dom0's own: the ids must give the root of the record that it
committed, the bitmap is its own, and the storage says what changed since the base. Where any of it
is not certain nothing is known, and the restore takes everything.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from dom0_agent.bitmap import Bitmap, grains_per_chunk
from dom0_agent.keyring import ArchiveKey
from dom0_agent.tracking.chunk_ids import CommittedIds, IdsDamaged
from dom0_agent.tracking.committing import opened_ids, prove
from dom0_agent.tracking.state import VolumeState
from wire.chunks import ID_SIZE
from wire.merkle import PAGE_IDS, chunk_count
from wire.records import Record
from wire.wanted import Wanted


class Present:
    """The present contents of a volume, to be compared with an image of the same size.

    ``base`` is the snapshot since which the storage knows of changes. ``wanted`` are the chunks of
    the image that are not certain to be there already: all, until ``begin`` and ``compare`` said
    otherwise.
    """

    def __init__(
        self, ids: CommittedIds, changed: Bitmap, base: int, size: int, chunk_size: int
    ) -> None:
        self._ids, self._changed, self.base = ids, changed, base
        self._chunk_size, self._chunks = chunk_size, chunk_count(size, chunk_size)
        self.wanted = Wanted(self._chunks)

    def begin(self, since: Bitmap) -> None:
        """``since``: what changed since the base."""
        self._changed.merge(since)
        for first, end in self._changed.runs(grains_per_chunk(self._chunk_size), self._chunks):
            self.wanted.add(first, end)

    def compare(self, index: int, untrusted_ids: bytes) -> None:
        """Want what differs of a page of the image, whose ids (32 bytes each) these are said to
        be; what comes of it may be used once they have proven to be those.
        """
        first = index * PAGE_IDS
        try:
            held = self._ids.page(index)[: len(untrusted_ids)]
        except IdsDamaged:
            self.wanted.add(first, first + len(untrusted_ids) // ID_SIZE)
            return
        if held == untrusted_ids:
            return
        for at in range(0, len(untrusted_ids), ID_SIZE):
            if held[at : at + ID_SIZE] != untrusted_ids[at : at + ID_SIZE]:
                self.wanted.add(first + at // ID_SIZE, first + at // ID_SIZE + 1)


@contextmanager
def known(store: VolumeState, archive: ArchiveKey, record: Record) -> Iterator[Present | None]:
    """What is known of the contents that a record's image is to take the place of; None when that
    is not enough to compare the two. The volume's lock is held.
    """
    state = store.load()
    progress = state.follows.get(archive.id.hex())
    committed = progress.committed if progress else None
    if (
        progress is None
        or committed is None
        or progress.redo is not None  # ids that may be of two sessions
        or state.base is None
        # An id says something of another only under the same key.
        or committed.dedup_domain != record.dedup_domain.hex()
        or not committed.size == state.base_size == record.size
    ):
        yield None
        return
    with opened_ids(store, progress, archive, committed.dedup_domain) as ids:
        if not prove(ids, progress, archive):
            yield None
            return
        changed = store.load_bitmap(progress.map, record.size)
        if progress.pending:  # it took the bitmap along
            changed.merge(store.load_bitmap(progress.pending.map, record.size))
        yield Present(ids, changed, state.base, record.size, archive.chunk_size)
