# SPDX-License-Identifier: GPL-2.0-or-later
"""The archive's binary structures, little-endian, each declared once: see wire.layout, and byte by
byte docs/format.md.

Heads, feet and entries are what the archive is built and read by. Files as a whole are declared for
what reads them field by field: ``sparsebak inspect``, the tables of docs/format.md, tests.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from backup_vm.archive.compiled import COMPILED
from wire import NO_SESSION
from wire.chunks import ID_SIZE
from wire.layout import Structure
from wire.messages import Offer
from wire.records import RECORD_SIZE, SealedRecord
from wire.restore import SealedContents, SentChunk, data_chunks, image_chunks

if TYPE_CHECKING:
    from construct import Bytes, Const, GreedyRange, Int8ul, Int32ul, Int64ul, Pointer, this

    from wire.declared import of

PACK_MAGIC = b"SBPACK\x00\x02"
INDEX_MAGIC = b"SBINDX\x00\x02"
SESSION_MAGIC = b"SBSESS\x00\x02"
EXPORT_MAGIC = b"SBEXPT\x00\x02"
PARITY_MAGIC = b"SBPRTY\x00\x02"
PARITY_END_MAGIC = b"SBPEND\x00\x02"
CHECKSUM_SIZE = 16
"""XXH3-128 of sealed chunks and pack indexes, big-endian as the library gives it."""
DIGEST_SIZE = 32
"""BLAKE2b-256 at the end of a session file, over all before it."""


class PackHead(Structure, compiled=COMPILED):
    """Beginning of a pack."""

    magic: ClassVar[Annotated[bytes, Const(PACK_MAGIC)]]
    archive: Annotated[bytes, Bytes(16) * "archive id"]


class ChunkEntry(Structure, compiled=COMPILED):
    """Before each sealed chunk of a pack, so that a pack can be read without its index."""

    sealed_length: Annotated[int, Int32ul * "bytes of the sealed chunk, which follows"]
    id: Annotated[bytes, Bytes(ID_SIZE) * "chunk id"]
    checksum: Annotated[bytes, Bytes(CHECKSUM_SIZE) * "XXH3-128 of the sealed chunk"]


class IndexEntry(Structure, compiled=COMPILED):
    """One for each chunk of a pack, in order."""

    offset: Annotated[int, Int64ul * "of the sealed chunk itself, after its entry"]
    sealed_length: Annotated[int, Int32ul * "bytes of the sealed chunk"]
    id: Annotated[bytes, Bytes(ID_SIZE) * "chunk id"]
    checksum: Annotated[bytes, Bytes(CHECKSUM_SIZE) * "XXH3-128 of the sealed chunk"]


class PackFoot(Structure, compiled=COMPILED):
    """End of a pack."""

    index: Annotated[int, Int64ul * "offset of the index"]
    count: Annotated[int, Int32ul * "number of chunks"]
    checksum: Annotated[bytes, Bytes(CHECKSUM_SIZE) * "XXH3-128 of the index"]
    magic: ClassVar[Annotated[bytes, Const(INDEX_MAGIC)]]


class PackedChunk(Structure):
    """A chunk of a pack."""

    entry: ChunkEntry
    sealed: SealedContents


class PackFile(Structure):
    """A pack. Its foot is read first."""

    foot: Annotated[PackFoot, Pointer(-PackFoot.length(), of(PackFoot))]
    head: PackHead
    chunks: Annotated[list[PackedChunk], of(PackedChunk)[this.foot.count]]
    index: Annotated[list[IndexEntry], of(IndexEntry)[this.foot.count]]


ENTRY, INDEX_ENTRY = ChunkEntry.row(), IndexEntry.row()
PACK_HEAD_SIZE = PackHead.length()
ENTRY_SIZE = ENTRY.size
INDEX_ENTRY_SIZE = INDEX_ENTRY.size
FOOTER_SIZE = PackFoot.length()

NO_BASE = NO_SESSION
"""``base`` of a session that builds on nothing."""


class SessionHead(Structure, compiled=COMPILED):
    """Beginning of a session file. ``base`` is there so that it is noticed when that session is
    missing.
    """

    magic: ClassVar[Annotated[bytes, Const(SESSION_MAGIC)]]
    inherit: Annotated[
        int, Int64ul * "entries of earlier sessions from this chunk number on do not count"
    ]
    count: Annotated[int, Int64ul * "number of entries here"]
    base: Annotated[bytes, Bytes(16) * "id of the session these build on, zero with `inherit` 0"]


class SessionEntry(Structure, compiled=COMPILED):
    """An entry of a session; they are kept as two columns."""

    number: Annotated[int, Int64ul * "chunk number"]
    id: Annotated[bytes, Bytes(ID_SIZE) * "chunk id"]


class SessionFile(Structure):
    """A session file."""

    head: SessionHead
    record: SealedRecord
    numbers: Annotated[list[int], (Int64ul * "chunk numbers, rising")[this.head.count]]
    ids: Annotated[list[bytes], (Bytes(ID_SIZE) * "chunk ids, in the same order")[this.head.count]]
    digest: Annotated[bytes, Bytes(DIGEST_SIZE) * "BLAKE2b-256 of all before"]


RECORD_AT = SessionHead.length()
"""Offset of the record in a session file."""
SESSION_HEAD_SIZE = RECORD_AT + RECORD_SIZE
"""Bytes before the columns of a session file."""
SESSION_ENTRY_SIZE = SessionEntry.row().size


class GroupHead(Structure, compiled=COMPILED):
    """Beginning of a group of a partial session's entries."""

    upto: Annotated[int, Int64ul * "first chunk number that is not covered"]
    count: Annotated[int, Int64ul * "number of entries"]
    digest: Annotated[bytes, Bytes(16) * "BLAKE2b-128 of `upto` and the two columns"]


class Group(Structure):
    """A group of a partial session's entries."""

    head: GroupHead
    numbers: Annotated[list[int], (Int64ul * "chunk numbers, rising")[this.head.count]]
    ids: Annotated[list[bytes], (Bytes(ID_SIZE) * "chunk ids, in the same order")[this.head.count]]


class PartialFile(Structure):
    """A session that is not complete."""

    offer: Offer
    groups: Annotated[list[Group], GreedyRange(of(Group))]


GROUP = GroupHead.row()


class ExportHead(Structure, compiled=COMPILED):
    """Beginning of an exported session."""

    magic: ClassVar[Annotated[bytes, Const(EXPORT_MAGIC)]]
    archive: Annotated[bytes, Bytes(16) * "archive id"]
    parameters_length: Annotated[
        int, Int32ul * "bytes of archive.toml, which follows; 0 for an open archive"
    ]


class ExportedFile(Structure):
    """An exported session."""

    head: ExportHead
    parameters: Annotated[bytes, Bytes(this.head.parameters_length) * "archive.toml"]
    record: SealedRecord
    ids: Annotated[list[bytes], (Bytes(ID_SIZE) * "ids of all chunks, in order")[image_chunks]]
    chunks: Annotated[list[SentChunk], of(SentChunk)[data_chunks]]
    digest: Annotated[bytes, Bytes(DIGEST_SIZE) * "BLAKE2b-256 of all before"]


class ParityHead(Structure, compiled=COMPILED):
    """Beginning of the plan of a parity file."""

    magic: ClassVar[Annotated[bytes, Const(PARITY_MAGIC)]]
    archive: Annotated[bytes, Bytes(16) * "archive id"]
    block_size: Annotated[int, Int32ul * "bytes of a block, a power of two"]
    rows: Annotated[int, Int32ul * "rows of data, k"]
    parity_rows: Annotated[int, Int32ul * "rows of parity, m"]
    width: Annotated[int, Int32ul * "blocks of a row"]
    blocks: Annotated[int, Int32ul * "blocks of data, those of all members"]
    members: Annotated[int, Int32ul * "files that are covered"]


class ParityMember(Structure, compiled=COMPILED):
    """A file that a parity file covers."""

    kind: Annotated[int, Int8ul * "1 a pack, 2 a session"]
    volume: Annotated[bytes, Bytes(16) * "volume id of a session, else zero"]
    sequence: Annotated[int, Int64ul * "sequence of a session, else zero"]
    id: Annotated[bytes, Bytes(16) * "id of the pack or session"]
    size: Annotated[int, Int64ul * "bytes of the file"]


class ParityPlan(Structure):
    """What a parity file covers, and the checksums of all blocks."""

    head: ParityHead
    members: Annotated[list[ParityMember], of(ParityMember)[this.head.members]]
    data: Annotated[
        list[bytes],
        (Bytes(CHECKSUM_SIZE) * "XXH3-128 of each block of data")[this.head.blocks],
    ]
    parity: Annotated[
        list[bytes],
        (Bytes(CHECKSUM_SIZE) * "XXH3-128 of each block of parity")[
            this.head.parity_rows * this.head.width
        ],
    ]
    digest: Annotated[bytes, Bytes(DIGEST_SIZE) * "BLAKE2b-256 of the plan before"]


PARITY_MEMBER = ParityMember.row()


class ParityFoot(Structure, compiled=COMPILED):
    """End of a parity file."""

    plan_length: Annotated[int, Int64ul * "bytes of the plan"]
    magic: ClassVar[Annotated[bytes, Const(PARITY_END_MAGIC)]]


class ParityFile(Structure):
    """A parity file. The plan is there twice: one bad place must not cost all of it."""

    plan: ParityPlan
    rows: Annotated[
        list[bytes],
        (Bytes(this.plan.head.block_size) * "blocks of parity, row after row")[
            this.plan.head.parity_rows * this.plan.head.width
        ],
    ]
    again: Annotated[ParityPlan, of(ParityPlan)]
    foot: ParityFoot


def pack_numbers(numbers: Sequence[int]) -> bytes:
    """A column of chunk numbers, as in SessionFile and Group."""
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def unpack_numbers(column: bytes) -> tuple[int, ...]:
    """Undo pack_numbers."""
    return struct.unpack(f"<{len(column) // 8}Q", column)


def session_size(head: bytes) -> int:
    """Bytes of the session file that begins with this head; raise ValueError where it is none."""
    return session_size_of(SessionHead.parse(head[:RECORD_AT]).count)


def session_size_of(count: int) -> int:
    """Bytes of a session file with so many entries."""
    return SESSION_HEAD_SIZE + count * SESSION_ENTRY_SIZE + DIGEST_SIZE
