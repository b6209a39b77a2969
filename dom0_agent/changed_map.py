"""Which parts of a volume changed: one bit for each 64 KiB."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from dom0_agent.compiled import COMPILED
from wire.layout import Structure

if TYPE_CHECKING:
    from construct import Bytes, Const, Int64ul, this

GRAIN = 64 * 1024
"""Bytes of volume per bit."""

_DIGEST_SIZE = 16
_MARKED = re.compile(rb"[^\x00]+")


@dataclass(frozen=True)
class MapHead(Structure, compiled=COMPILED):
    """Beginning of a map's file."""

    magic: ClassVar[Annotated[bytes, Const(b"SBMAP\x00\x00\x01")]]
    bits_length: Annotated[int, Int64ul * "bytes of the bits"]


class MapFile(Structure):
    """A map's file."""

    head: MapHead
    bits: Annotated[bytes, Bytes(this.head.bits_length) * "one for each grain, lowest bit first"]
    digest: Annotated[bytes, Bytes(_DIGEST_SIZE) * "BLAKE2b-128 of all before"]


class ChangedMap:
    """A set of 64 KiB grains, kept as bits; grows by itself when marked past its end."""

    def __init__(self, bits: bytes = b"") -> None:
        self._bits = bytearray(bits)

    @classmethod
    def everything(cls, size: int) -> ChangedMap:
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
        if first // 8 == last // 8:
            self._bits[first // 8] |= (0xFF << first % 8) & (0xFF >> 7 - last % 8) & 0xFF
            return
        self._bits[first // 8] |= (0xFF << first % 8) & 0xFF
        self._bits[first // 8 + 1 : last // 8] = b"\xff" * (last // 8 - first // 8 - 1)
        self._bits[last // 8] |= 0xFF >> 7 - last % 8

    def merge(self, other: ChangedMap) -> None:
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
        order, below ``units``.
        """
        begin = end = -1
        for span in _MARKED.finditer(self._bits):
            for first, last in self._spans(span.start(), span.end()):
                unit, beyond = first // grains, min((last - 1) // grains + 1, units)
                if unit > end:
                    if begin < end:
                        yield begin, end
                    begin = unit
                end = max(end, beyond)
        if 0 <= begin < end:
            yield begin, end

    def _spans(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Runs of marked grains within the bytes ``start`` to ``end`` of the map, none of which is
        zero.
        """
        begin = -1
        at = start
        while at < end:
            byte = self._bits[at]
            if byte == 0xFF:  # long runs are common after a first session or a trim
                stop = at
                while stop < end and self._bits[stop] == 0xFF:
                    stop += 1
                begin = at * 8 if begin < 0 else begin
                at = stop
                continue
            for bit in range(8):
                marked = byte >> bit & 1
                if marked and begin < 0:
                    begin = at * 8 + bit
                elif not marked and begin >= 0:
                    yield begin, at * 8 + bit
                    begin = -1
            at += 1
        if begin >= 0:
            yield begin, end * 8

    def to_bytes(self) -> bytes:
        """The file form: magic, length, bits, BLAKE2b-128 of all that."""
        body = MapHead(len(self._bits)).build() + self._bits
        return body + _digest(body)

    @classmethod
    def from_bytes(cls, raw: bytes) -> ChangedMap | None:
        """Undo to_bytes; None when the file is damaged (the caller then takes everything as
        changed).
        """
        body, digest = raw[:-_DIGEST_SIZE], raw[-_DIGEST_SIZE:]
        head, bits = body[: MapHead.length()], body[MapHead.length() :]
        if _digest(body) != digest:
            return None
        try:
            sound = MapHead.parse(head).bits_length == len(bits)
        except ValueError:
            return None
        return cls(bits) if sound else None


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST_SIZE).digest()
