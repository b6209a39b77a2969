# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading here and there in a session's image, with the key: chunks are opened when they are
wanted, and the last ones kept.
"""

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict

from backup_vm.archive import lookup
from backup_vm.archive.archive import Archive
from backup_vm.archive.image import Image, split
from backup_vm.archive.packs import PackReader
from backup_vm.errors import DamagedError
from backup_vm.jobs.reading import Proven, open_image
from backup_vm.unsealing import AnyKeys
from common.override import override
from wire.chunks import ZERO_ID, ChunkIds, NotAuthentic, Opener
from wire.merkle import PAGE_IDS, chunk_count

CACHE_BYTES = 64 << 20
"""Bytes of opened chunks kept, for all images together."""


class ChunkCache:
    """Opened chunks by id, the ones used last. Sessions of a volume share most of theirs. Safe to
    share between threads.
    """

    def __init__(self, size: int = CACHE_BYTES) -> None:
        self._left = size
        self._chunks: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, chunk_id: bytes) -> bytes | None:
        """A chunk, if it is kept."""
        with self._lock:
            chunk = self._chunks.get(chunk_id)
            if chunk is not None:
                self._chunks.move_to_end(chunk_id)
            return chunk

    def put(self, chunk_id: bytes, chunk: bytes) -> None:
        """Keep a chunk, in the place of those not used for longest."""
        with self._lock:
            if chunk_id in self._chunks:
                return
            self._chunks[chunk_id] = chunk
            self._left -= len(chunk)
            while self._left < 0:
                self._left += len(self._chunks.popitem(last=False)[1])


class OpenedImage(ABC):
    """An image whose record and ids have proven authentic, read here and there. Safe to share
    between threads.
    """

    # Of 1,024 ids each: with chunks of 128 KiB they stand for 8 GiB, in a few MiB of memory.
    _PAGES = 64

    def __init__(self, proven: Proven, cache: ChunkCache) -> None:
        self._proven, self._cache = proven, cache
        self._record, self._name = proven.record, proven.name
        self.ids = ChunkIds(proven.keys, self._record.chunk_size)
        self._opener = Opener(proven.keys)
        self._pages: OrderedDict[int, list[bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self.size, self.chunk_size = self._record.size, self._record.chunk_size
        self._chunks = chunk_count(self.size, self.chunk_size)

    @abstractmethod
    def _some_ids(self, first: int, end: int) -> list[bytes]:
        """Ids of chunks, one thread at a time; they are compared with what was proven. Raises
        DamagedError.
        """

    @abstractmethod
    def _sealed(self, number: int, chunk_id: bytes) -> bytes | memoryview:
        """The sealed chunk of a number, from any thread. Raises DamagedError."""

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset`` on, fewer at the image's end. Raises
        DamagedError.
        """
        end, size, parts = min(offset + length, self.size), self._record.chunk_size, []
        if offset // size < (end - 1) // size:
            self._expect(range(offset // size, (end - 1) // size + 1))
        while offset < end:
            number, within = divmod(offset, size)
            part = self._chunk(number)[within : within + end - offset]
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def _expect(self, numbers: range) -> None:  # noqa: B027  where each is at hand, nothing
        """These chunks are asked for next, one after another: whoever gets several at once more
        quickly keeps them. Raises DamagedError.
        """

    def _chunk(self, number: int) -> bytes:
        chunk_id = self._id(number)
        if chunk_id == ZERO_ID:
            return bytes(self._record.chunk_size)
        chunk = self._cache.get(chunk_id)
        return chunk or self._keep(number, chunk_id, self._sealed(number, chunk_id))

    def _keep(self, number: int, chunk_id: bytes, sealed: bytes | memoryview) -> bytes:
        """Open a chunk, and keep it for a while. Raises DamagedError."""
        try:
            chunk = self._opener.open(chunk_id, sealed, self.ids, self._record.chunk_size)
        except NotAuthentic as error:
            raise DamagedError(
                f"{self._name}: chunk {number}: {error}", "run: sparsebak scrub"
            ) from None
        self._cache.put(chunk_id, chunk)
        return chunk

    def _id(self, number: int) -> bytes:
        index, at = divmod(number, PAGE_IDS)
        with self._lock:  # an image's columns are for one thread at a time
            page = self._pages.get(index)
            if page is None:
                first = index * PAGE_IDS
                page = self._some_ids(first, min(first + PAGE_IDS, self._chunks))
                self._proven.check(first, page)
                self._pages[index] = page
                if len(self._pages) > self._PAGES:
                    self._pages.popitem(last=False)
        return page[at]


class LazyImage(OpenedImage):
    """One image of an archive, proven complete and authentic when it is made.

    ``reader`` is shared with other images: each keeps packs open.
    """

    def __init__(
        self,
        archive: Archive,
        image: Image,
        keys: AnyKeys,
        name: str,
        cache: ChunkCache,
        reader: PackReader | None = None,
    ) -> None:
        super().__init__(open_image(archive, image, keys, name), cache)
        self._archive, self._image = archive, image
        self._reader = reader or PackReader(archive.storage)

    @override
    def _some_ids(self, first: int, end: int) -> list[bytes]:
        return split(self._image.ids(first, end))

    @override
    def _sealed(self, number: int, chunk_id: bytes) -> memoryview:
        session = self._image.session
        with self._archive.looking.present(session):
            place = lookup.places(self._archive, session, [chunk_id]).get(chunk_id)
            if place is None:
                raise DamagedError(
                    f"{self._name}: chunk {number} is missing from the archive",
                    "run: sparsebak scrub",
                )
            return lookup.read(self._archive, self._reader, chunk_id, place)

    def close(self) -> None:
        """Close the packs."""
        self._reader.__exit__()
