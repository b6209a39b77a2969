# SPDX-License-Identifier: GPL-2.0-or-later
"""Which chunks of an image a restore asks for: what dom0 answers once it has proven the ids.

One bit for each chunk of the image, lowest first, in frames of kind 10 of PART_CHUNKS chunks each;
the last one is shorter, and bits beyond the image are zero.
"""

from __future__ import annotations

from collections.abc import Iterator

from common.bits import set_run

PART_CHUNKS = 1 << 18
"""Chunks that a frame has bits for: 32 KiB."""


class Wanted:
    """A set of chunk numbers, of an image of ``chunks`` chunks."""

    def __init__(self, chunks: int, every: bool = False) -> None:
        self.chunks = chunks
        self._bits = bytearray(-(-chunks // 8))
        if every:
            self.add(0, chunks)

    def add(self, first: int, end: int) -> None:
        """Add the chunks from ``first`` up to ``end``."""
        set_run(self._bits, first, end)

    def __contains__(self, number: int) -> bool:
        return bool(self._bits[number >> 3] >> (number & 7) & 1)

    def __len__(self) -> int:
        return int.from_bytes(self._bits, "little").bit_count()

    def any(self, first: int, end: int) -> bool:
        """Whether any chunk from ``first`` up to ``end`` is in it; ``first`` is a multiple of 8."""
        low, high = first >> 3, -(-end >> 3)
        return self._bits.count(0, low, high) < high - low

    def count(self, first: int, end: int) -> int:
        """How many from ``first`` up to ``end`` are in it; ``first`` is a multiple of 8."""
        within = int.from_bytes(self._bits[first >> 3 : -(-end >> 3)], "little")
        return (within & (1 << end - first) - 1).bit_count()

    def parts(self) -> Iterator[bytes]:
        """The payloads of its frames, in order."""
        for at in range(0, len(self._bits), PART_CHUNKS // 8):
            yield bytes(self._bits[at : at + PART_CHUNKS // 8])

    def take(self, at: int, part: bytes) -> int:
        """Put the payload of a frame where it belongs, from chunk ``at`` on, and return where the
        next one begins; ValueError for one that cannot be.
        """
        end = min(at + PART_CHUNKS, self.chunks)
        bits = int.from_bytes(part, "little")
        if at >= end or len(part) != -(-(end - at) // 8) or bits >> (end - at):
            raise ValueError(f"{len(part)} bytes for the chunks from {at} on, of {self.chunks}")
        self._bits[at >> 3 : (at >> 3) + len(part)] = part
        return end
