# SPDX-License-Identifier: GPL-2.0-or-later
"""Which parts of a volume changed: one bit for each 64 KiB."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import chain, compress
from typing import TYPE_CHECKING, Annotated, ClassVar

from common.bits import set_run
from dom0_agent.compiled import COMPILED
from wire import MAX_VOLUME_SIZE
from wire.layout import Structure

if TYPE_CHECKING:
    from construct import Bytes, Const, Int64ul, this

GRAIN = 64 * 1024
"""Bytes of volume per bit."""

_DIGEST_SIZE = 16
_MARKED = re.compile(rb"[^\x00]+")

_WINDOW = 1 << 12
"""Bytes of the bitmap that are looked at together, which is 2 GiB of the volume."""
_SELECTED = tuple(bytes(byte >> bit & 1 for bit in range(8)) for byte in range(256))
"""By a byte: its bits, lowest first, as a byte each."""
_LOW = bytes(sum((byte >> 2 * pair & 3 > 0) << pair for pair in range(4)) for byte in range(256))
"""By a byte: a bit for each two of its bits, set where one of them is, in the lower half."""
_HIGH = bytes(half << 4 for half in _LOW)
"""By a byte: the bits of _LOW, in the upper half."""


class BitmapHead(Structure, compiled=COMPILED):
    """Beginning of a bitmap's file."""

    magic: ClassVar[Annotated[bytes, Const(b"SBMAP\x00\x00\x01")]]
    bits_length: Annotated[int, Int64ul * "bytes of the bits"]


class BitmapFile(Structure):
    """A bitmap's file."""

    head: BitmapHead
    bits: Annotated[bytes, Bytes(this.head.bits_length) * "one for each grain, lowest bit first"]
    digest: Annotated[bytes, Bytes(_DIGEST_SIZE) * "BLAKE2b-128 of all before"]


LARGEST = BitmapHead.length() + MAX_VOLUME_SIZE // GRAIN // 8 + _DIGEST_SIZE
"""Bytes that the file of a bitmap can have."""


class Bitmap:
    """A set of 64 KiB grains, kept as bits; grows by itself when marked past its end."""

    def __init__(self, bits: bytes = b"") -> None:
        self._bits = bytearray(bits)

    @classmethod
    def everything(cls, size: int) -> Bitmap:
        """A map with every grain of ``size`` bytes marked."""
        marked = cls()
        marked.mark(0, size)
        return marked

    def mark(self, start: int, end: int) -> None:
        """Mark every grain that the bytes from ``start`` up to ``end`` touch."""
        if start >= end:
            return
        first, last = start // GRAIN, (end - 1) // GRAIN
        if last // 8 >= len(self._bits):
            self._bits.extend(bytes(last // 8 + 1 - len(self._bits)))
        set_run(self._bits, first, last + 1)

    def merge(self, other: Bitmap) -> None:
        """Mark all that ``other`` has marked."""
        length = max(len(self._bits), len(other._bits))
        either = int.from_bytes(self._bits, "little") | int.from_bytes(other._bits, "little")
        self._bits = bytearray(either.to_bytes(length, "little"))

    def changed(self, size: int) -> int:
        """Bytes marked in a volume of ``size`` bytes, counted in whole grains."""
        grains = -(-size // GRAIN)
        within = int.from_bytes(self._bits[: -(-grains // 8)], "little") & (1 << grains) - 1
        return min(within.bit_count() * GRAIN, size)

    def runs(self, grains: int, units: int) -> Iterator[tuple[int, int]]:
        """Runs of units of ``grains`` grains each in which anything is marked: (first, end), in
        order and apart, below ``units``. ``grains`` is a power of two up to 64.
        """
        # The edges, units that are not as the one before, are by turns where a run begins and where
        # it ends. All that is done for each of them is done in C: a qube writes where it likes, and
        # of a TiB of which it wrote every other grain there are sixteen million.
        edges = chain.from_iterable(self._edges(grains, units))
        return zip(edges, edges, strict=True)

    def _edges(self, grains: int, units: int) -> Iterator[Iterable[int]]:
        """The numbers of the units that are not as the one before, in order, some at a time."""
        width = _WINDOW * 8 // grains
        first = last = 0
        for start in range(0, len(self._bits), _WINDOW):
            if first >= units:
                break
            window = bytes(self._bits[start : start + _WINDOW])
            marked = int.from_bytes(_in_units(window, grains), "little")
            marked &= (1 << min(width, units - first)) - 1
            edges = (marked ^ (marked << 1 | last)) & (1 << width) - 1
            last = marked >> width - 1
            if edges:
                raw = edges.to_bytes(width // 8, "little")
                for span in _MARKED.finditer(raw):
                    selected = b"".join(map(_SELECTED.__getitem__, span[0]))
                    yield compress(range(first + span.start() * 8, first + width), selected)
            first += width
        if last:  # the last run ends where the map does
            yield (first,)

    def to_bytes(self) -> bytes:
        """The file form: magic, length, bits, BLAKE2b-128 of all that."""
        body = BitmapHead(len(self._bits)).build() + self._bits
        return body + _digest(body)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Bitmap | None:
        """Undo to_bytes; None when the file is damaged (the caller then takes everything as
        changed).
        """
        body, digest = raw[:-_DIGEST_SIZE], raw[-_DIGEST_SIZE:]
        head, bits = body[: BitmapHead.length()], body[BitmapHead.length() :]
        if _digest(body) != digest:
            return None
        try:
            sound = BitmapHead.parse(head).bits_length == len(bits)
        except ValueError:
            return None
        return cls(bits) if sound else None


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST_SIZE).digest()


def _in_units(bits: bytes, grains: int) -> bytes:
    """A window's bits for units of so many grains: set where that of any of its grains is."""
    if grains > 1:
        bits = bits.ljust(_WINDOW, b"\0")
    while grains > 1:  # halved again and again
        low, high = bits[0::2].translate(_LOW), bits[1::2].translate(_HIGH)
        both = int.from_bytes(low, "little") | int.from_bytes(high, "little")
        bits, grains = both.to_bytes(len(low), "little"), grains // 2
    return bits


def grains_per_chunk(chunk_size: int) -> int:
    """Grains of a bitmap in one chunk."""
    return chunk_size // GRAIN
