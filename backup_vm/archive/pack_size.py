# SPDX-License-Identifier: GPL-2.0-or-later
"""How large packs become: as is asked for, or as suits what the archive holds already.

Each pack is a file to list, and a request or two when the catalog is rebuilt; of a large one more
must be sent again after a run that was killed, and more written again to reclaim its space.
"""

from typing import TYPE_CHECKING

from backup_vm.quantities import parse_size

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive

LEAST, LARGEST = 4 << 20, 512 << 20
_MOST_PACKS_BITS = 14
"""Of packs; from so many on (16,384: 512 GiB of 32 MiB each) they become larger with the archive.
"""


def parse_pack_size(text: str) -> int:
    """Bytes that ``128M`` stands for; raise ValueError."""
    size = parse_size(text)
    if not LEAST <= size <= LARGEST:
        raise ValueError(f"{text!r} is not a size from {LEAST >> 20}M to {LARGEST >> 20}M")
    return size


def pack_size(archive: "Archive") -> int:
    """Bytes from which on a new pack of this archive is full."""
    if archive.pack_size is not None:
        return archive.pack_size
    suits = 1 << max((archive.catalog.pack_bytes() >> _MOST_PACKS_BITS).bit_length() - 1, 0)
    return max(archive.storage.pack_size, min(suits, LARGEST))
