"""What structures are compiled to, see wire.layout. Made from their declarations
by "make pages": change those instead."""

from wire.layout import Codes

COMPILED: dict[str, Codes] = {
    "MapHead": {"magic": b"SBMAP\x00\x00\x01", "bits_length": "Q"},
    "ChunkEntry": {"number": "Q", "id": "32s"},
    "GroupHead": {"first": "Q", "end": "Q", "count": "L", "digest": "16s"},
}
