# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs of bits in an array of bytes, lowest bit first."""

_FROM = tuple(0xFF << bit & 0xFF for bit in range(8))
"""By the number of a bit: a byte with that one and all above it set."""
_UP_TO = tuple(0xFF >> (7 - bit) for bit in range(8))
"""By the number of a bit: a byte with that one and all below it set."""


def set_run(bits: bytearray, first: int, end: int) -> None:
    """Set the bits from ``first`` up to, not including, ``end``; ``bits`` has room for them all."""
    if first >= end:
        return
    low, high = first // 8, (end - 1) // 8
    from_first, up_to_last = _FROM[first % 8], _UP_TO[(end - 1) % 8]
    if low == high:
        bits[low] |= from_first & up_to_last
        return
    bits[low] |= from_first
    bits[low + 1 : high] = b"\xff" * (high - low - 1)
    bits[high] |= up_to_last
