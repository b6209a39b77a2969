# SPDX-License-Identifier: GPL-2.0-or-later
"""How much room a disk has, as far as what it tells can be true."""

from typing import NamedTuple

_SIGNED, _UNSIGNED = 1 << 63, 1 << 64


class Room(NamedTuple):
    """Bytes of a disk."""

    free: int
    capacity: int


def room(unit: int, blocks: int, available: int) -> Room | None:
    """Of statvfs's numbers of 64 bits, signed or not: bytes of a block, how many there are, and how
    many of them this user may still write.

    None where that is not known: some mounts of networks and clouds tell of no blocks at all, or
    make the numbers up. ``--until-free`` removes sessions because of this number. Fewer than none
    are available where less is left than is kept for root.
    """
    if available >= _SIGNED:
        available -= _UNSIGNED
    if unit <= 0 or not 0 < blocks < _SIGNED or available > blocks:
        return None
    return Room(max(available, 0) * unit, blocks * unit)
