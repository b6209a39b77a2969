# SPDX-License-Identifier: GPL-2.0-or-later
"""The root of an image, by a Merkle tree of two levels: a keyed hash over page digests, each a
keyed hash over 1,024 chunk ids in order.

A small change to a huge volume rehashes a few pages; a restore or verify checks page by page in
flat memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from wire.chunks import ID_SIZE, DomainKeys
from wire.compiled import COMPILED
from wire.layout import Structure

if TYPE_CHECKING:
    from construct import Int32ul, Int64ul

PAGE_IDS = 1024
PAGE_BYTES = PAGE_IDS * ID_SIZE
ZERO_PAGE = bytes(PAGE_BYTES)
DIGEST_SIZE = 32


def chunk_count(size: int, chunk_size: int) -> int:
    """Chunks of a volume of ``size`` bytes; the last one counts as padded with zeros."""
    return -(-size // chunk_size)


def page_count(chunks: int) -> int:
    """Pages of ``chunks`` chunk ids."""
    return -(-chunks // PAGE_IDS)


class RootHead(Structure, compiled=COMPILED):
    """What the root covers before the page digests."""

    size: Annotated[int, Int64ul * "bytes of the volume"]
    chunk_size: Annotated[int, Int32ul * "bytes of a chunk"]


class Tree:
    """Page digests and roots of one deduplication domain's images."""

    def __init__(self, keys: DomainKeys) -> None:
        self._key = keys.root
        self.zero_page = self._page(ZERO_PAGE)

    def _page(self, ids: bytes) -> bytes:
        return hashlib.blake2b(
            ids, digest_size=DIGEST_SIZE, key=self._key, person=b"sparsebak page"
        ).digest()

    def page(self, ids: bytes) -> bytes:
        """Digest of up to 1,024 ids (32 bytes each); a shorter page counts as filled up with zero
        ids.
        """
        # Most pages of a large volume may be holes: they are compared, which is quicker than
        # hashed.
        ids = ids.ljust(PAGE_BYTES, b"\x00")
        return self.zero_page if ids == ZERO_PAGE else self._page(ids)

    def root(self, size: int, chunk_size: int, pages: Iterable[bytes]) -> bytes:
        """Root of an image of ``size`` bytes from its page digests, in order."""
        digest = hashlib.blake2b(digest_size=DIGEST_SIZE, key=self._key, person=b"sparsebak root")
        digest.update(RootHead.row().pack(size, chunk_size))
        for page in pages:
            digest.update(page)
        return digest.digest()
