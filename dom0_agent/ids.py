"""The chunk ids of a volume's newest committed session, and the root of the next one. Flat memory at any size.

The ids file holds 32 bytes a chunk; ``.pages`` beside it holds the digest of every 1,024 of them. Both are a cache of
what was sent: without them the next session is a full one. They are written in place, from a log that can be applied
again after a crash.
"""

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path

from wire.durable import write_synced
from wire.sealing import ID_SIZE, ZERO_ID
from wire.tree import DIGEST_SIZE, PAGE_BYTES, PAGE_IDS, Tree, page_count

Entry = tuple[int, bytes]
"""A chunk number and its id."""

ENTRY = struct.Struct(f"<Q{ID_SIZE}s")


class CommittedIds:
    """The ids file of one volume and archive. Missing parts read as zero ids."""

    def __init__(self, path: Path) -> None:
        self._path, self._pages = path, path.with_name(path.name + ".pages")
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.count = os.fstat(self._fd).st_size // ID_SIZE

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def page(self, index: int) -> bytes:
        """The ids of a page, 1,024 of them."""
        return os.pread(self._fd, PAGE_BYTES, index * PAGE_BYTES).ljust(PAGE_BYTES, b"\x00")

    def digests(
        self, entries: Iterable[Entry], full: bool, chunks: int, tree: Tree
    ) -> Iterator[bytes]:
        """Page digests of the image of ``chunks`` chunks that results from laying ``entries`` (in order) over this one.

        With ``full`` they are laid over nothing.
        """
        known = b"" if full or not self._pages.exists() else self._pages.read_bytes()
        usable = min(self.count, chunks) // PAGE_IDS  # beyond, the end of the volume may have moved
        changed = _by_page(entries)
        page, overlay = next(changed, (-1, []))
        for index in range(page_count(chunks)):
            if index != page:
                digest = known[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE]
                yield (
                    digest
                    if index < usable and len(digest) == DIGEST_SIZE
                    else self._digest(index, [], full, chunks, tree)
                )
                continue
            yield self._digest(index, overlay, full, chunks, tree)
            page, overlay = next(changed, (-1, []))

    def _digest(
        self, index: int, overlay: list[Entry], full: bool, chunks: int, tree: Tree
    ) -> bytes:
        if not overlay and (full or index * PAGE_IDS >= self.count):
            return tree.zero_page
        return tree.page(self._laid_over(index, overlay, full, chunks))

    def _laid_over(self, index: int, overlay: list[Entry], full: bool, chunks: int) -> bytes:
        ids = bytearray(PAGE_BYTES) if full else bytearray(self.page(index))
        for number, chunk_id in overlay:
            at = number % PAGE_IDS * ID_SIZE
            ids[at : at + ID_SIZE] = chunk_id
        within = min(PAGE_IDS, chunks - index * PAGE_IDS) * ID_SIZE
        ids[within:] = bytes(PAGE_BYTES - within)
        return bytes(ids)

    def apply(
        self, entries: Iterable[Entry], full: bool, chunks: int, pages: Iterable[bytes]
    ) -> None:
        """Make this the ids of the newer session: the same arguments as for ``digests``, and what that returned.

        May be done again after a crash, for the same entries, with the same outcome.
        """
        self._pages.unlink(missing_ok=True)
        digests = b"".join(pages)
        if full:
            os.ftruncate(self._fd, 0)
        os.ftruncate(self._fd, chunks * ID_SIZE)
        for index, overlay in _by_page(entries):
            os.pwrite(self._fd, self._laid_over(index, overlay, False, chunks), index * PAGE_BYTES)
        os.ftruncate(self._fd, chunks * ID_SIZE)
        os.fsync(self._fd)
        self.count = chunks
        write_synced(self._pages, digests)


def _by_page(entries: Iterable[Entry]) -> Iterator[tuple[int, list[Entry]]]:
    return (
        (page, list(group)) for page, group in groupby(entries, lambda entry: entry[0] // PAGE_IDS)
    )


class KnownIds:
    """Ids to compare with, chunk by chunk in rising order: those committed, or those the caller says it holds.

    ``page(index)`` gives the ids of a page; it is asked in rising order. What it does not give is the zero id.
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
