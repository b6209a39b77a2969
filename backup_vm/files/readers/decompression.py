# SPDX-License-Identifier: GPL-2.0-or-later
"""What Btrfs compresses with: zlib, LZO and zstd, each bounded by what is to come out."""

from struct import unpack_from

from backup_vm.files.readers.source import Malformed, Unsupported

NONE, _ZLIB, _LZO, _ZSTD = 0, 1, 2, 3


def decompressed(data: bytes, packing: int, size: int, sector: int, inline: bool) -> bytes:
    """``size`` bytes, with zeros at the end where fewer come out. Raises Malformed."""
    if packing == NONE:
        out = data
    elif packing == _ZLIB:
        import zlib

        try:
            out = zlib.decompressobj().decompress(data, size)
        except zlib.error:
            raise Malformed("a compressed piece of a file is damaged") from None
    elif packing == _ZSTD:
        import zstandard

        try:
            with zstandard.ZstdDecompressor(max_window_size=1 << 20).stream_reader(data) as reader:
                out = reader.read(size)
        except zstandard.ZstdError:
            raise Malformed("a compressed piece of a file is damaged") from None
    elif packing == _LZO:
        out = _pages(data, size, sector, inline)
    else:
        raise Unsupported(f"it is compressed in a way that is not read here: {packing}")
    return out[:size].ljust(size, b"\0")


def _pages(data: bytes, size: int, sector: int, inline: bool) -> bytes:
    """LZO as Btrfs uses it: the length of all, then each sector for itself after its length."""
    out = bytearray()
    if len(data) < 4 or not sector:
        raise Malformed("a compressed piece of a file is damaged")
    end = min(unpack_from("<I", data)[0], len(data))
    at = 4
    while at + 4 <= end and len(out) < size:
        if not inline and sector - at % sector < 4:
            at += sector - at % sector  # a length is never cut by the end of a sector
            continue
        (length,) = unpack_from("<I", data, at)
        out += _lzo(data[at + 4 : at + 4 + length], min(sector, size - len(out)))
        at += 4 + length
    return bytes(out)


def _lzo(data: bytes, size: int) -> bytes:
    """LZO1X (Linux, Documentation/staging/lzo.rst), at most ``size`` bytes and a run more."""
    out = bytearray()
    try:
        _Lzo(data, out, size).run()
    except IndexError:
        raise Malformed("a compressed piece of a file is damaged") from None
    return bytes(out[:size])


class _Lzo:
    def __init__(self, data: bytes, out: bytearray, most: int) -> None:
        self._data, self._out, self._at = data, out, 0
        self._most = most + 4096

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _length(self, code: int, mask: int, base: int) -> int:
        """A length that continues in bytes of zero when it does not fit."""
        length = code & mask
        if length:
            return length + base
        length = mask
        while not (byte := self._byte()):
            length += 255
            if length > self._most:
                raise IndexError
        return length + byte + base

    def _literal(self, count: int) -> None:
        piece = self._data[self._at : self._at + count]
        if len(piece) != count or len(self._out) + count > self._most:
            raise IndexError
        self._out += piece
        self._at += count

    def _copy(self, distance: int, count: int) -> None:
        out = self._out
        if distance > len(out) or len(out) + count > self._most:
            raise IndexError
        if distance >= count:
            start = len(out) - distance
            out += out[start : start + count]
        else:
            piece = bytes(out[-distance:])
            out += (piece * (count // distance + 1))[:count]

    def run(self) -> None:
        state, code = 0, self._byte()
        if code > 17:
            self._literal(code - 17)
            state = min(code - 17, 4)
            code = self._byte()
        while True:
            if code < 16 and state == 0:
                self._literal(self._length(code, 15, 3))
                state, code = 4, self._byte()
                continue
            if code < 16:
                high = self._byte() << 2
                if state == 4:
                    self._copy(high + (code >> 2) + 2049, 3)
                else:
                    self._copy(high + (code >> 2) + 1, 2)
                state = code & 3
            elif code < 32:
                count = self._length(code, 7, 2)
                low, high = self._byte(), self._byte()
                distance = ((code & 8) << 11) + (high << 6) + (low >> 2)
                if not distance:
                    return  # the end
                self._copy(distance + 16384, count)
                state = low & 3
            elif code < 64:
                count = self._length(code, 31, 2)
                low, high = self._byte(), self._byte()
                self._copy((high << 6) + (low >> 2) + 1, count)
                state = low & 3
            else:
                high = self._byte()
                self._copy((high << 3) + (code >> 2 & 7) + 1, (code >> 5) + 1)
                state = code & 3
            if state:
                self._literal(state)
            code = self._byte()
