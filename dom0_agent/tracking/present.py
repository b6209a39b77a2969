# SPDX-License-Identifier: GPL-2.0-or-later
"""What a volume holds at present, so that a restore need take only what differs.

The contents are those of the session committed last, of which the chunk ids are here, apart from
what may have changed since; that is read. All of it is dom0's own: the ids must give the root of
the record that it committed, the bitmap is its own, and the storage says what changed since the
base. Where any of it is not certain nothing is known, and the restore takes everything.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from common.differing import differing
from dom0_agent.bitmap import Bitmap, grains_per_chunk
from dom0_agent.keyring import ArchiveKey
from dom0_agent.tracking.chunk_ids import CommittedIds, IdsDamaged
from dom0_agent.tracking.committing import opened_ids, prove
from dom0_agent.tracking.state import VolumeState
from wire.chunks import ID_SIZE, ZERO_ID, ChunkIds
from wire.merkle import PAGE_IDS, chunk_count
from wire.records import Record
from wire.wanted import Wanted

if TYPE_CHECKING:
    from dom0_agent.targets.interface import Replacement


class Present:
    """The present contents of a volume, to be compared with an image of the same size.

    ``base`` is the snapshot since which the storage knows of changes. ``wanted`` are the chunks of
    the image that are not certain to be there already, as far as ``compare`` has come.
    """

    def __init__(
        self, ids: CommittedIds, changed: Bitmap, base: int, record: Record, archive: ArchiveKey
    ) -> None:
        self._ids, self._changed, self.base = ids, changed, base
        self._chunk_size = record.chunk_size
        chunks = chunk_count(record.size, record.chunk_size)
        self._chunk_ids = ChunkIds(record.domain_keys(archive.keys()), record.chunk_size)
        self._doubtful, self.wanted = Wanted(chunks), Wanted(chunks)

    def begin(self, target: "Replacement", since: Bitmap, threads: int) -> None:
        """The contents that the target begins as: ``since`` is what changed in them since the
        base.
        """
        self._target, self._threads = target, threads
        self._changed.merge(since)
        chunks = self.wanted.chunks
        for first, end in self._changed.runs(grains_per_chunk(self._chunk_size), chunks):
            self._doubtful.add(first, end)

    def compare(self, index: int, untrusted_ids: bytes) -> None:
        """Want what differs of a page of the image, whose ids (32 bytes each) these are said to
        be; what comes of it may be used once they have proven to be those.
        """
        first, count = index * PAGE_IDS, len(untrusted_ids) // ID_SIZE
        try:
            held = self._ids.page(index)[: len(untrusted_ids)]
        except IdsDamaged:
            held = b""
        doubtful = not held or self._doubtful.any(first, first + count)
        if held == untrusted_ids and not doubtful:
            return
        to_read: list[tuple[int, bytes]] = []
        for at in range(count):
            untrusted_id = untrusted_ids[at * ID_SIZE : (at + 1) * ID_SIZE]
            if held and first + at not in self._doubtful:
                if held[at * ID_SIZE : (at + 1) * ID_SIZE] != untrusted_id:
                    self.wanted.add(first + at, first + at + 1)
            elif untrusted_id == ZERO_ID:  # to make a hole costs less than to look
                self.wanted.add(first + at, first + at + 1)
            else:
                to_read.append((first + at, untrusted_id))
        read, size = self._target.read, self._chunk_size
        for number in differing(read, self._chunk_ids.of, size, to_read, self._threads):
            self.wanted.add(number, number + 1)


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
        yield Present(ids, changed, state.base, record, archive)
