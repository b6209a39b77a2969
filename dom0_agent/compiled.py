# SPDX-License-Identifier: GPL-2.0-or-later
"""What structures are compiled to, see wire.layout. Made from their declarations
by "make pages": change those instead."""

from wire.layout import Codes

COMPILED: dict[str, Codes] = {
    "BitmapHead": {"magic": b"SBMAP\x00\x00\x01", "bits_length": "Q"},
    "FiemapHead": {
        "start": "=Q",
        "span": "=Q",
        "flags": "=L",
        "mapped": "=L",
        "room": "=L",
        "reserved": "=L",
    },
    "FiemapExtent": {
        "logical": "=Q",
        "physical": "=Q",
        "span": "=Q",
        "reserved": "16s",
        "flags": "=L",
        "reserved_more": "12s",
    },
    "SearchKey": {
        "tree": "=Q",
        "first_object": "=Q",
        "last_object": "=Q",
        "first_offset": "=Q",
        "last_offset": "=Q",
        "first_transaction": "=Q",
        "last_transaction": "=Q",
        "first_kind": "=L",
        "last_kind": "=L",
        "count": "=L",
        "reserved": "36s",
    },
    "SearchArguments": {
        "key.tree": "=Q",
        "key.first_object": "=Q",
        "key.last_object": "=Q",
        "key.first_offset": "=Q",
        "key.last_offset": "=Q",
        "key.first_transaction": "=Q",
        "key.last_transaction": "=Q",
        "key.first_kind": "=L",
        "key.last_kind": "=L",
        "key.count": "=L",
        "key.reserved": "36s",
        "room": "=Q",
    },
    "ItemHead": {
        "transaction": "=Q",
        "object": "=Q",
        "offset": "=Q",
        "kind": "=L",
        "item_length": "=L",
    },
    "FileExtent": {
        "generation": "=Q",
        "span": "=Q",
        "compression": "=B",
        "encryption": "=B",
        "other": "=H",
        "kind": "=B",
    },
    "ExtentPlace": {"place": "=Q", "disk_span": "=Q", "offset": "=Q", "span": "=Q"},
    "FileAttributes": {
        "flags": "=L",
        "extent_size": "=L",
        "extents": "=L",
        "project": "=L",
        "copy_extent_size": "=L",
        "reserved": "8s",
    },
    "ByteRange": {"start": "=Q", "span": "=Q"},
    "ChunkEntry": {"number": "Q", "id": "32s"},
    "GroupHead": {"first": "Q", "end": "Q", "count": "L", "digest": "16s"},
}
