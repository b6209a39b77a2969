# SPDX-License-Identifier: GPL-2.0-or-later
"""A granted session's image, read from the backup VM that has its archive: sealed chunks come from
there, and are opened here.
"""

from collections.abc import Iterator

from backup_vm.agent.sealed_reader import SealedReader
from backup_vm.errors import DamagedError
from backup_vm.jobs.lazy_image import ChunkCache, OpenedImage
from backup_vm.jobs.reading import Proven, not_complete, prove_ids
from common.override import override
from wire.chunks import ZERO_ID, NotAuthentic
from wire.grants import Grant
from wire.merkle import chunk_count
from wire.open_chunks import SealedChunk
from wire.reading import MAX_CHUNKS, MAX_IDS
from wire.records import Record

_TOGETHER = 8 << 20
"""Bytes of chunks that are asked for at once: each answer is waited for, and is in memory."""


class DistantImage(OpenedImage):
    """See the module. Proven complete and authentic when it is made; methods raise AgentError,
    too.
    """

    def __init__(self, qube: str, grant: Grant, record: Record, cache: ChunkCache) -> None:
        self._reader = SealedReader(qube, record.volume_id, record.session, record.chunk_size)
        chunks = chunk_count(record.size, record.chunk_size)

        def windows() -> Iterator[list[bytes]]:
            for first in range(0, chunks, MAX_IDS):
                yield self._reader.ids(first, min(first + MAX_IDS, chunks))

        try:
            try:
                there = grant.record_of(self._reader.record())
            except NotAuthentic:
                there = None
            if there != record:
                raise DamagedError(f"{qube} gave the record of another session of {record.name}")
            proven = prove_ids(windows(), record, grant.keys, record.name)
            if proven is None:
                raise not_complete(record.name, record)
        except BaseException:
            self.close()
            raise
        super().__init__(proven, cache)
        self._together = max(1, min(MAX_CHUNKS, _TOGETHER // self.chunk_size))

    @override
    def _some_ids(self, first: int, end: int) -> list[bytes]:
        return self._reader.ids(first, end)

    @override
    def _sealed(self, number: int, chunk_id: bytes) -> bytes:
        return self._reader.sealed(number, chunk_id)

    @override
    def _expect(self, numbers: range) -> None:
        ids = [self._id(number) for number in numbers[: self._together]]
        lacking = [chunk_id if self._cache.get(chunk_id) is None else ZERO_ID for chunk_id in ids]
        for start, end in _runs(lacking, self._together):
            sealed = self._reader.sealed_run(numbers[start], ids[start:end])
            for at, one in enumerate(sealed, start):
                if lacking[at] != ZERO_ID:
                    self._keep(numbers[at], ids[at], one)

    @property
    def proven(self) -> Proven:
        """What its chunks are opened with."""
        return self._proven

    def sealed_chunks(self) -> Iterator[SealedChunk]:
        """All chunks that have data, sealed, in order; their ids are compared again."""
        for first in range(0, self._chunks, MAX_IDS):
            ids = self._some_ids(first, min(first + MAX_IDS, self._chunks))
            self._proven.check(first, ids)
            for start, end in _runs(ids, self._together):
                sealed = self._reader.sealed_run(first + start, ids[start:end])
                for number, one in enumerate(sealed, start):
                    if ids[number] != ZERO_ID:
                        yield SealedChunk(first + number, ids[number], one)

    def close(self) -> None:
        """Hang up."""
        self._reader.close()


def _runs(ids: list[bytes], most: int) -> Iterator[tuple[int, int]]:
    """Where to ask for chunks, at most so many at once: from the first to behind the last one that
    has data.
    """
    at = 0
    while at < len(ids):
        if ids[at] == ZERO_ID:
            at += 1
            continue
        end = min(at + most, len(ids))
        while ids[end - 1] == ZERO_ID:
            end -= 1
        yield at, end
        at = end
