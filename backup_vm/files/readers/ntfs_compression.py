# SPDX-License-Identifier: GPL-2.0-or-later
"""LZNT1, with which NTFS compresses (Microsoft's [MS-XCA], 2.5)."""

from struct import unpack_from

from backup_vm.files.readers.source import Malformed

_CHUNK = 4096
_PACKED = 0x8000


def unpacked(data: bytes, size: int) -> bytes:
    """``size`` bytes, with zeros at the end where fewer come out. Raises Malformed."""
    out, at = bytearray(), 0
    while at + 2 <= len(data) and len(out) < size:
        (header,) = unpack_from("<H", data, at)
        if not header:
            break
        end = at + 3 + (header & _CHUNK - 1)
        chunk = data[at + 2 : end]
        if end > len(data):
            raise _damaged()
        out += (_chunk(chunk) if header & _PACKED else chunk[:_CHUNK]).ljust(_CHUNK, b"\0")
        at = end
    return bytes(out[:size]).ljust(size, b"\0")


def _chunk(data: bytes) -> bytes:
    """At most 4 KiB: each byte of flags says of eight pieces after it which are bytes, and which
    are copies of what is there already.
    """
    out, at = bytearray(), 0
    while at < len(data):
        flags = data[at]
        at += 1
        if not flags:
            out += data[at : at + 8]
            at += 8
            continue
        for bit in range(8):
            if at >= len(data):
                break
            if not flags >> bit & 1:
                out.append(data[at])
                at += 1
                continue
            if at + 2 > len(data) or not out:
                raise _damaged()
            # The more there is, the more of the 16 bits are for how far back it is.
            low = 16 - max(4, (len(out) - 1).bit_length())
            (word,) = unpack_from("<H", data, at)
            at += 2
            _copy(out, (word >> low) + 1, (word & (1 << low) - 1) + 3)
    if len(out) > _CHUNK:
        raise _damaged()
    return bytes(out)


def _copy(out: bytearray, distance: int, count: int) -> None:
    if distance > len(out) or len(out) + count > _CHUNK:
        raise _damaged()
    piece = bytes(out[len(out) - distance :][:count])
    out += (piece * (count // distance + 1))[:count]


def _damaged() -> Malformed:
    return Malformed("a compressed piece of a file is damaged")
