# SPDX-License-Identifier: GPL-2.0-or-later
"""The chunk ids of a volume's newest committed session, and the root of the next one. Flat memory
at any size.

The ids file holds 32 bytes a chunk; ``.pages`` beside it holds the digest of every 1,024 of them.
Both are a cache of what was sent, and are believed only as far as they give the root of the
committed record: without them the next session is a full one. They are written in place, from a log
that can be applied again after a crash.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Self

from common.durable import UNREADABLE, closing_fd, pwrite_all, remove, write_synced
from dom0_agent.compiled import COMPILED
from wire.chunks import ID_SIZE, ZERO_ID
from wire.layout import Structure
from wire.merkle import DIGEST_SIZE, PAGE_BYTES, PAGE_IDS, Tree, chunk_count, page_count

if TYPE_CHECKING:
    from construct import Bytes, GreedyRange, Int64ul

Entry = tuple[int, bytes]
"""A chunk number and its id."""


class ChunkEntry(Structure, compiled=COMPILED):
    """A chunk as the log of a pending session has it."""

    number: Annotated[int, Int64ul * "chunk number"]
    id: Annotated[bytes, Bytes(ID_SIZE) * "chunk id"]


class IdsFile(Structure):
    """The ids of all chunks of a volume's newest committed session."""

    ids: Annotated[list[bytes], GreedyRange(Bytes(ID_SIZE) * "chunk ids, in order")]


class PagesFile(Structure):
    """The digests of the pages of an ids file."""

    pages: Annotated[list[bytes], GreedyRange(Bytes(DIGEST_SIZE) * "page digests, in order")]


ENTRY = ChunkEntry.row()
_READING = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
"""Also of a FIFO, as a damaged file system may show it: nothing waits for that."""


class IdsDamaged(Exception):
    """A page of the ids is not what was committed."""


class CommittedIds:
    """The ids file of one volume and archive, for reading. Missing parts read as zero ids."""

    def __init__(self, path: Path, tree: Tree) -> None:
        self._path, self._pages = path, path.with_name(path.name + ".pages")
        self.tree, self._proven = tree, b""
        try:
            self._fd = os.open(path, _READING)
        except OSError as error:
            if error.errno != errno.ENOENT and error.errno not in UNREADABLE:
                raise
            self._fd = -1  # lost is as good as not there: a cache
        self.count = 0
        if self._fd >= 0:
            try:
                self.count = os.fstat(self._fd).st_size // ID_SIZE
            except OSError:
                os.close(self._fd)
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def prove(self, size: int, chunk_size: int, root: bytes) -> bool:
        """Whether these are the ids of an image of ``size`` bytes with that root; pages are checked
        from then on.

        The digests are read rather than the ids. Without them, or where they do not fit, all ids
        are.
        """
        chunks = chunk_count(size, chunk_size)
        if self.count != chunks:
            return False
        for digests in (self._kept_digests, lambda: self.every_digest(chunks)):
            try:
                found = digests()
            except (OSError, IdsDamaged):  # a bad sector: what cannot be read is not known
                continue
            if (
                len(found) == page_count(chunks) * DIGEST_SIZE
                and self.tree.root(size, chunk_size, [found]) == root
            ):
                self._proven = found
                return True
        return False

    def _kept_digests(self) -> bytes:
        try:
            fd = os.open(self._pages, _READING)
        except FileNotFoundError:
            return b""
        with closing_fd(fd):
            return os.pread(fd, page_count(self.count) * DIGEST_SIZE + 1, 0)

    def every_digest(self, chunks: int) -> bytes:
        """The page digests of the first ``chunks`` ids, made from them all."""
        return b"".join(
            self._digest(index, [], False, chunks) for index in range(page_count(chunks))
        )

    def page(self, index: int) -> bytes:
        """The ids of a page, 1,024 of them; IdsDamaged when they are not those that were proven."""
        if self._fd < 0:
            return bytes(PAGE_BYTES)
        try:
            ids = os.pread(self._fd, PAGE_BYTES, index * PAGE_BYTES).ljust(PAGE_BYTES, b"\x00")
        except OSError as error:
            raise IdsDamaged(f"{self._path}: {error}") from None
        digest = self._proven_digest(index)
        if digest and self.tree.page(ids) != digest:
            raise IdsDamaged(f"{self._path}: page {index} is not what was committed")
        return ids

    def digests(self, entries: Iterable[Entry], full: bool, chunks: int) -> Iterator[bytes]:
        """Page digests of the image of ``chunks`` chunks that results from laying ``entries`` (in
        order) over this one.

        With ``full`` they are laid over nothing; otherwise the ids have been proven.
        """
        overlay = _Overlay(entries)
        for index in range(page_count(chunks)):
            laid = overlay.of(index)
            kept = b"" if laid or full else self._reusable(index, chunks)
            yield kept or self._digest(index, laid, full, chunks)

    def _reusable(self, index: int, chunks: int) -> bytes:
        """The proven digest of a page that nothing is laid over; nothing where it does not hold for
        an image of ``chunks`` chunks.
        """
        if index >= min(self.count, chunks) // PAGE_IDS:
            return b""  # not whole in both images: the end of the volume may have moved within it
        return self._proven_digest(index)

    def _proven_digest(self, index: int) -> bytes:
        return self._proven[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE]

    def _digest(self, index: int, overlay: list[Entry], full: bool, chunks: int) -> bytes:
        if not overlay and (full or index * PAGE_IDS >= self.count):
            return self.tree.zero_page
        ids = bytes(PAGE_BYTES) if full else self.page(index)
        return self.tree.page(_laid_over(ids, index, overlay, chunks))

    def apply(
        self, entries: Iterable[Entry], full: bool, chunks: int, pages: bytes | None = None
    ) -> bytes:
        """Make the file that of the newer session: the same arguments as for ``digests``, and what
        that returned.

        Without ``pages``, after a crash, all ids are read for them: the same entries may have been
        applied in part. Returns the page digests. Raises OSError; this object is of no use any
        more.
        """
        # First of all: what is written below is of two sessions until it ends, and digests beside
        # it would be believed.
        remove(self._pages)
        if full:  # another file, whatever was wrong with the old one
            remove(self._path)
        with closing_fd(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)) as fd:
            os.ftruncate(fd, chunks * ID_SIZE)
            for index, overlay in _by_page(entries):
                ids = os.pread(fd, PAGE_BYTES, index * PAGE_BYTES).ljust(PAGE_BYTES, b"\x00")
                laid = _laid_over(ids, index, overlay, chunks)
                pwrite_all(fd, laid, index * PAGE_BYTES)
            os.ftruncate(fd, chunks * ID_SIZE)  # the last page was written whole
            os.fsync(fd)  # before the digests, or they might vouch for what a crash took back
        if pages is None:
            with CommittedIds(self._path, self.tree) as applied:
                pages = applied.every_digest(chunks)
        write_synced(self._pages, pages)
        return pages

    def drop(self) -> None:
        """Forget what was found to be damaged; the next session is a full one."""
        for path in (self._path, self._pages):
            remove(path)


class _Overlay:
    """Entries, in order, to be laid over pages that are asked for in rising order."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._pages = _by_page(entries)
        self._next = next(self._pages, None)

    def of(self, index: int) -> list[Entry]:
        """The entries of a page."""
        if self._next is None or self._next[0] != index:
            return []
        entries, self._next = self._next[1], next(self._pages, None)
        return entries


def _laid_over(ids: bytes, index: int, overlay: list[Entry], chunks: int) -> bytes:
    laid = bytearray(ids)
    for number, chunk_id in overlay:
        at = number % PAGE_IDS * ID_SIZE
        laid[at : at + ID_SIZE] = chunk_id
    within = min(PAGE_IDS, chunks - index * PAGE_IDS) * ID_SIZE
    laid[within:] = bytes(PAGE_BYTES - within)
    return bytes(laid)


def _by_page(entries: Iterable[Entry]) -> Iterator[tuple[int, list[Entry]]]:
    return (
        (page, list(group)) for page, group in groupby(entries, lambda entry: entry[0] // PAGE_IDS)
    )


class KnownIds:
    """Ids to compare with, chunk by chunk in rising order: those committed, or those the caller
    says it holds.

    ``page(index)`` gives the ids of a page; it is asked in rising order. What it does not give is
    the zero id.
    """

    def __init__(self, page: Callable[[int], bytes]) -> None:
        self._page = page
        self._index, self._ids = -1, b""

    def of(self, number: int) -> bytes:
        """The id known for a chunk."""
        if number // PAGE_IDS != self._index:
            self._index = number // PAGE_IDS
            self._ids = self._page(self._index)
        at = number % PAGE_IDS * ID_SIZE
        return self._ids[at : at + ID_SIZE] or ZERO_ID
