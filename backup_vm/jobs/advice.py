# SPDX-License-Identifier: GPL-2.0-or-later
"""Which size of chunks suits volumes of so many bytes. It is chosen when an archive is made, and
cannot be changed.

The catalog takes about 100 bytes a chunk, and dom0 keeps 32 for each: docs/scale.md has what they
cost. Small changes send less with small chunks, so that the smallest that suits is advised.
"""

from wire import CHUNK_SIZES, DEFAULT_CHUNK_SIZE

MOST_CHUNKS = 1 << 26
"""Chunks of an archive up to which nothing takes long: 67 million are 8 TiB in chunks of 128 KiB, a
catalog of 7 GB, and about a quarter of an hour for a rebuild.
"""
HELD = 2
"""Bytes that an archive comes to hold for each of its volumes, for it keeps old sessions, too."""


def chunk_size_for(size: int) -> int:
    """The smallest chunks, from the default on, that suit volumes of so many bytes together."""
    fitting = (one for one in CHUNK_SIZES if one >= DEFAULT_CHUNK_SIZE)
    return next((one for one in fitting if HELD * size // one <= MOST_CHUNKS), CHUNK_SIZES[-1])


def chunk_size_text(size: int) -> str:
    """As ``archive add --chunk-size`` takes it."""
    return f"{size >> 20}M" if size >> 20 else f"{size >> 10}K"
