# SPDX-License-Identifier: GPL-2.0-or-later
"""The structures of an index of names, each declared once: see wire.layout, and byte by byte
docs/format.md.

What is in clear is what it takes to hand an index on, to copy it and to find damage: whoever stores
an archive does these without a key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from backup_vm.archive.compiled import COMPILED
from backup_vm.archive.format import DIGEST_SIZE
from wire.chunks import NONCE_SIZE, SALT_SIZE, TAG_SIZE
from wire.layout import Structure

if TYPE_CHECKING:
    from construct import Bytes, Const, Int8ul, Int16ul, Int32ul, Int64sl, Int64ul, this

    from wire.declared import Text, of

NAMES_MAGIC = b"SBNAME\x00\x02"
SEAL_OVERHEAD = SALT_SIZE + NONCE_SIZE + TAG_SIZE
"""Bytes that a short seal adds."""
LONGEST_ROWS = 2 << 20
"""Bytes of a block's rows, at most."""
LONGEST_BLOCK = LONGEST_ROWS + (64 << 10) + SEAL_OVERHEAD
"""Bytes of a sealed block, at most: what does not compress gets a little longer."""
LEADS, IS, GONE = range(3)
"""What a row says of a file."""
BY_DEFAULT = 1
"""A flag of NamesAbout."""
NODE_SIZE = 16


class NamesHead(Structure, compiled=COMPILED):
    """Beginning of an index of names."""

    magic: ClassVar[Annotated[bytes, Const(NAMES_MAGIC)]]
    archive: Annotated[bytes, Bytes(16) * "archive id"]
    volume_id: Annotated[bytes, Bytes(16) * "volume id"]
    segments: Annotated[int, Int32ul * "number of segments, at least one"]


class SegmentHead(Structure, compiled=COMPILED):
    """Beginning of a segment: what it leads from and to."""

    session: Annotated[bytes, Bytes(16) * "id of the session whose names it leads to"]
    id: Annotated[bytes, Bytes(16) * "its own id, random"]
    base: Annotated[bytes, Bytes(16) * "id of the segment it builds on, zero for none"]
    blocks: Annotated[int, Int32ul * "number of blocks, at least one"]
    payload: Annotated[int, Int64ul * "bytes of all blocks, which follow, with their lengths"]


class BlockLength(Structure, compiled=COMPILED):
    """Before each block."""

    sealed_length: Annotated[int, Int32ul * "bytes of the sealed block, which follows"]


class SealedNames(Structure):
    """A short seal of a block, under the key for names of the session's deduplication domain; its
    associated data is NamesBound.
    """

    salt: Annotated[bytes, Bytes(SALT_SIZE) * "random"]
    nonce: Annotated[bytes, Bytes(NONCE_SIZE) * "zero"]
    text: Annotated[
        bytes, Bytes(this._.entry.sealed_length - SEAL_OVERHEAD) * "AES-256-GCM of the block"
    ]
    tag: Annotated[bytes, Bytes(TAG_SIZE) * "tag"]


class NamesBlock(Structure):
    """A block of a segment, behind its length."""

    entry: BlockLength
    seal: SealedNames


class NamesSegment(Structure):
    """A segment of an index of names."""

    head: SegmentHead
    blocks: Annotated[list[NamesBlock], of(NamesBlock)[this.head.blocks]]


class NamesFile(Structure):
    """An index of names."""

    head: NamesHead
    segments: Annotated[list[NamesSegment], of(NamesSegment)[this.head.segments]]
    digest: Annotated[bytes, Bytes(DIGEST_SIZE) * "BLAKE2b-256 of all before"]


class NamesBound(Structure, compiled=COMPILED):
    """What a sealed block is bound to: it is good for nothing anywhere else."""

    archive: Annotated[bytes, Bytes(16) * "archive id"]
    volume_id: Annotated[bytes, Bytes(16) * "volume id"]
    session: Annotated[bytes, Bytes(16) * "`session` of its segment"]
    id: Annotated[bytes, Bytes(16) * "`id` of its segment"]
    base: Annotated[bytes, Bytes(16) * "`base` of its segment"]
    number: Annotated[int, Int32ul * "number of the block in its segment, from 0"]


class NamesAbout(Structure, compiled=COMPILED):
    """The first block of a segment: what the others are of."""

    blocks: Annotated[int, Int32ul * "number of blocks, this one included"]
    rows: Annotated[int, Int64ul * "number of rows that are no context"]
    troubles: Annotated[int, Int32ul * "files and folders that could not be read"]
    flags: Annotated[int, Int8ul * "bits: 1 the file system is the one that is read by default"]
    partition: Annotated[int, Int16ul * "number of the partition, 0 for the whole image"]
    logical: Annotated[str, Text(256) * "GROUP/VOLUME of LVM, else empty"]


class RowsHead(Structure, compiled=COMPILED):
    """Beginning of a block of rows."""

    count: Annotated[int, Int32ul * "number of rows"]
    text_length: Annotated[int, Int32ul * "bytes of all names"]


class NamesRows(Structure):
    """A block of rows, before it is compressed: columns, one after another."""

    head: RowsHead
    what: Annotated[
        list[int],
        (Int8ul * "0 only leads to what follows, 1 the file is so, 2 it is not there")[
            this.head.count
        ],
    ]
    depth: Annotated[list[int], (Int16ul * "names in its path, at least one")[this.head.count]]
    mode: Annotated[list[int], (Int16ul * "st_mode")[this.head.count]]
    links: Annotated[list[int], (Int32ul * "number of its names")[this.head.count]]
    uid: Annotated[list[int], (Int32ul * "owner")[this.head.count]]
    gid: Annotated[list[int], (Int32ul * "group")[this.head.count]]
    major: Annotated[list[int], (Int32ul * "of a device")[this.head.count]]
    minor: Annotated[list[int], (Int32ul * "of a device")[this.head.count]]
    size: Annotated[list[int], (Int64ul * "bytes")[this.head.count]]
    mtime: Annotated[list[int], (Int64sl * "modified, Unix seconds")[this.head.count]]
    mtime_ns: Annotated[list[int], (Int32ul * "and nanoseconds")[this.head.count]]
    ctime: Annotated[list[int], (Int64sl * "changed, Unix seconds")[this.head.count]]
    ctime_ns: Annotated[list[int], (Int32ul * "and nanoseconds")[this.head.count]]
    node: Annotated[
        list[bytes], (Bytes(NODE_SIZE) * "inode, or what is in its place")[this.head.count]
    ]
    names: Annotated[
        bytes,
        Bytes(this.head.text_length) * "the last name of each path, and a zero after it",
    ]


HEAD_SIZE, SEGMENT_SIZE = NamesHead.length(), SegmentHead.length()
ROWS_HEAD_SIZE = RowsHead.length()
BLOCK_LENGTH = BlockLength.row()
