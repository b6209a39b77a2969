# SPDX-License-Identifier: GPL-2.0-or-later
"""What structures are compiled to, see wire.layout. Made from their declarations
by "make pages": change those instead."""

from wire.layout import Codes

COMPILED: dict[str, Codes] = {
    "PackHead": {"magic": b"SBPACK\x00\x02", "archive": "16s"},
    "ChunkEntry": {"sealed_length": "L", "id": "32s", "checksum": "16s"},
    "IndexEntry": {"offset": "Q", "sealed_length": "L", "id": "32s", "checksum": "16s"},
    "PackFoot": {"index": "Q", "count": "L", "checksum": "16s", "magic": b"SBINDX\x00\x02"},
    "SessionHead": {"magic": b"SBSESS\x00\x02", "inherit": "Q", "count": "Q", "base": "16s"},
    "SessionEntry": {"number": "Q", "id": "32s"},
    "GroupHead": {"upto": "Q", "count": "Q", "digest": "16s"},
    "ExportHead": {"magic": b"SBEXPT\x00\x02", "archive": "16s", "parameters_length": "L"},
    "ParityHead": {
        "magic": b"SBPRTY\x00\x02",
        "archive": "16s",
        "block_size": "L",
        "rows": "L",
        "parity_rows": "L",
        "width": "L",
        "blocks": "L",
        "members": "L",
    },
    "ParityMember": {"kind": "B", "volume": "16s", "sequence": "Q", "id": "16s", "size": "Q"},
    "ParityFoot": {"plan_length": "Q", "magic": b"SBPEND\x00\x02"},
    "NamesHead": {
        "magic": b"SBNAME\x00\x02",
        "archive": "16s",
        "volume_id": "16s",
        "segments": "L",
    },
    "SegmentHead": {"session": "16s", "id": "16s", "base": "16s", "blocks": "L", "payload": "Q"},
    "BlockLength": {"sealed_length": "L"},
    "NamesBound": {
        "archive": "16s",
        "volume_id": "16s",
        "session": "16s",
        "id": "16s",
        "base": "16s",
        "number": "L",
    },
    "NamesAbout": {
        "blocks": "L",
        "rows": "Q",
        "troubles": "L",
        "flags": "B",
        "partition": "H",
        "logical": "256t",
    },
    "RowsHead": {"count": "L", "text_length": "L"},
}
