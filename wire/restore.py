# SPDX-License-Identifier: GPL-2.0-or-later
"""What is sent to Restore and Verify, as a whole, and the sealed chunks in it and in an archive.

dom0 reads the stream piece by piece (dom0_agent/rpc/receiving.py): the record, which must be
authentic, then ids, which must be those of its root, then chunks, each of which must be that of its
id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from wire.chunks import ID_SIZE, NONCE_SIZE, OVERHEAD, SALT_SIZE, TAG_SIZE
from wire.layout import Structure
from wire.merkle import chunk_count
from wire.messages import END, Length
from wire.records import SealedRecord

if TYPE_CHECKING:
    from construct import Bytes, Const, Int8ul, this

    from wire.declared import of


class SealedContents(Structure):
    """A sealed chunk; what it is in says its length before it."""

    method: Annotated[int, Int8ul * "0 the chunk itself, 1 zstd, 2 zstd and padding"]
    salt: Annotated[bytes, Bytes(SALT_SIZE) * "of one Extract call; random"]
    nonce: Annotated[bytes, Bytes(NONCE_SIZE) * "the chunk's number"]
    data: Annotated[bytes, Bytes(this._.entry.sealed_length - OVERHEAD) * "AES-256-GCM of the data"]
    tag: Annotated[bytes, Bytes(TAG_SIZE) * "tag"]


class SentChunk(Structure):
    """A chunk behind its length."""

    entry: Length
    sealed: SealedContents


def image_chunks(whole: Any) -> int:
    """One for each chunk of the image."""
    clear = whole["record"]["clear"]
    return chunk_count(clear["size"], clear["chunk_size"]) if clear["chunk_size"] else 0


def data_chunks(whole: Any) -> int:
    """One for each id that is not zero."""
    return sum(map(any, whole["ids"]))


class RestoreStream(Structure):
    """What follows the request of Restore and Verify."""

    record: SealedRecord
    ids: Annotated[list[bytes], (Bytes(ID_SIZE) * "ids of all chunks, in order")[image_chunks]]
    chunks: Annotated[list[SentChunk], of(SentChunk)[data_chunks]]
    end: ClassVar[Annotated[bytes, Const(END)]]
