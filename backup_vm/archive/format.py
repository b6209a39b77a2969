"""The archive's binary structures, little-endian; byte by byte in docs/format.md."""

import construct as c

from wire.records import RECORD_SIZE
from wire.sealing import ID_SIZE

PACK_MAGIC = b"SBPACK\x00\x01"
INDEX_MAGIC = b"SBINDX\x00\x01"
SESSION_MAGIC = b"SBSESS\x00\x01"
CHECKSUM_SIZE = 16
"""XXH3-128 of sealed chunks and pack indexes, big-endian as the library gives it."""
DIGEST_SIZE = 32
"""BLAKE2b-256 at the end of a session file, over all before it."""

PACK_HEAD = c.Struct("magic" / c.Const(PACK_MAGIC), "archive" / c.Bytes(16))
ENTRY = c.Struct("length" / c.Int32ul, "id" / c.Bytes(ID_SIZE), "checksum" / c.Bytes(CHECKSUM_SIZE)).compile()
"""Before each sealed chunk of a pack, so that a pack can be read without its index."""
INDEX_ENTRY = c.Struct(
    "offset" / c.Int64ul, "length" / c.Int32ul, "id" / c.Bytes(ID_SIZE), "checksum" / c.Bytes(CHECKSUM_SIZE)
).compile()
"""``offset`` of the sealed chunk itself, after its ENTRY."""
FOOTER = c.Struct("index" / c.Int64ul, "count" / c.Int32ul, "checksum" / c.Bytes(CHECKSUM_SIZE), "magic" / c.Const(INDEX_MAGIC))

PACK_HEAD_SIZE: int = PACK_HEAD.sizeof()
ENTRY_SIZE = 4 + ID_SIZE + CHECKSUM_SIZE
INDEX_ENTRY_SIZE = 12 + ID_SIZE + CHECKSUM_SIZE
FOOTER_SIZE: int = FOOTER.sizeof()

SESSION_HEAD = c.Struct(
    "magic" / c.Const(SESSION_MAGIC),
    "inherit" / c.Int64ul,
    "count" / c.Int64ul,
    "record" / c.Bytes(RECORD_SIZE),
)
"""``inherit``: entries of earlier sessions at or beyond this chunk number do not count. ``count``: entries here."""
SESSION_HEAD_SIZE: int = SESSION_HEAD.sizeof()
SESSION_ENTRY_SIZE = 8 + ID_SIZE
