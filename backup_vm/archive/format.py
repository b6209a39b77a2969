"""The archive's binary structures, little-endian; byte by byte in docs/format.md."""

import struct

from wire.chunks import ID_SIZE
from wire.layout import U32, U64, Fields, raw
from wire.records import RECORD_SIZE

PACK_MAGIC = b"SBPACK\x00\x02"
INDEX_MAGIC = b"SBINDX\x00\x02"
SESSION_MAGIC = b"SBSESS\x00\x02"
CHECKSUM_SIZE = 16
"""XXH3-128 of sealed chunks and pack indexes, big-endian as the library gives it."""
DIGEST_SIZE = 32
"""BLAKE2b-256 at the end of a session file, over all before it."""

PACK_HEAD = Fields(magic=PACK_MAGIC, archive=raw(16))
ENTRY = struct.Struct(f"<I{ID_SIZE}s{CHECKSUM_SIZE}s")
"""Length, id and checksum before each sealed chunk of a pack, so that a pack can be read without
its index.
"""
INDEX_ENTRY = struct.Struct(f"<QI{ID_SIZE}s{CHECKSUM_SIZE}s")
"""Offset of the sealed chunk itself, after its ENTRY; then what that says."""
FOOTER = Fields(index=U64, count=U32, checksum=raw(CHECKSUM_SIZE), magic=INDEX_MAGIC)

PACK_HEAD_SIZE = PACK_HEAD.size
ENTRY_SIZE = ENTRY.size
INDEX_ENTRY_SIZE = INDEX_ENTRY.size
FOOTER_SIZE = FOOTER.size

SESSION_HEAD = Fields(
    magic=SESSION_MAGIC,
    inherit=U64,
    count=U64,
    base=raw(16),
    record=raw(RECORD_SIZE),
)
"""``inherit``: entries of earlier sessions at or beyond this chunk number do not count. ``count``:
entries here.

``base``: id of the session that these entries build on, zero with ``inherit`` 0, so that it is
noticed when that one is missing.
"""
NO_BASE = bytes(16)
"""``base`` of a session that builds on nothing."""
SESSION_HEAD_SIZE = SESSION_HEAD.size
SESSION_ENTRY_SIZE = 8 + ID_SIZE


def session_size(head: bytes) -> int:
    """Bytes of the session file that begins with this head; raise ValueError where it is none."""
    count = int(SESSION_HEAD.parse(head)["count"])
    return SESSION_HEAD_SIZE + count * SESSION_ENTRY_SIZE + DIGEST_SIZE
