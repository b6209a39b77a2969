# SPDX-License-Identifier: GPL-2.0-or-later
"""Opening the chunks of an image on a few threads, neighbours together: what dom0 and a holder of
the key both do.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from common.image_writer import WRITE_BYTES
from common.pipeline import in_order, neighbours
from wire.chunks import ChunkIds, DomainKeys, NotAuthentic, Opener
from wire.records import Record

AHEAD_BYTES = 12 << 20
"""Bytes of chunks taken in and not yet checked, at most, whatever the chunk size."""


class SealedChunk(NamedTuple):
    """A sealed chunk; its id is already known to belong at that number."""

    number: int
    id: bytes
    untrusted_data: bytes | memoryview


class ChunkNotAuthentic(NotAuthentic):
    """A chunk does not open; ``number`` says which."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(f"chunk {number}: {text}")
        self.number = number


class ChunkOpener:
    """Opens chunks of one image, from any thread."""

    def __init__(self, keys: DomainKeys, chunk_size: int) -> None:
        self._opener, self._ids, self._size = Opener(keys), ChunkIds(keys, chunk_size), chunk_size

    def open(self, chunk: SealedChunk) -> bytes:
        """Contents, as long as a chunk is; raise ChunkNotAuthentic."""
        try:
            return self._opener.open(chunk.id, chunk.untrusted_data, self._ids, self._size)
        except NotAuthentic as error:
            raise ChunkNotAuthentic(chunk.number, str(error)) from None


def open_chunks(
    chunks: Iterable[SealedChunk],
    record: Record,
    keys: DomainKeys,
    threads: int,
    sink: Callable[[int, list[bytes]], object] | None,
    ordered: bool = False,
) -> None:
    """Open every chunk and hand offset and contents to ``sink``, if there is one: from several
    threads, or ``ordered``.

    ``keys`` are those of the record's deduplication domain. The last chunk is cut at the record's
    size. Raises ChunkNotAuthentic, and whatever ``chunks`` and ``sink`` raise.
    """
    opener, size = ChunkOpener(keys, record.chunk_size), record.chunk_size

    def work(together: list[SealedChunk]) -> tuple[int, list[bytes]]:
        parts = [opener.open(chunk) for chunk in together]
        offset, parts = (
            together[0].number * size,
            [*parts[:-1], parts[-1][: record.size - together[-1].number * size]],
        )
        if sink is None or ordered:
            return offset, parts if ordered else []
        sink(offset, parts)
        return offset, []

    most = max(1, WRITE_BYTES // size)
    ahead = max(2, min(2 * threads + 2, AHEAD_BYTES // (most * size)))
    for offset, contents in in_order(work, neighbours(chunks, most), threads, ahead):
        if sink is not None and ordered:
            sink(offset, contents)
