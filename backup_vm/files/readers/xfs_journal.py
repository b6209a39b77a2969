# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the journal of XFS has anything to replay: it has not after an unmount."""

from struct import unpack_from

from backup_vm.files.readers.source import Source

_SECTOR = 512
_MAGIC = b"\xfe\xed\xba\xbe"
_UNMOUNT = 0x20
_LONGEST_RECORD = 512 + 2
"""Sectors of a record of 256 KiB and its header."""


def is_clean(source: Source, start: int, size: int) -> bool:
    """Whether the last record of the journal, which is a ring of sectors, says that the file
    system was unmounted. Where that cannot be told, it is not.
    """
    count = size // _SECTOR

    def sector(number: int) -> bytes:
        return source.read(start + number % count * _SECTOR, _SECTOR)

    def cycle(number: int) -> int:
        raw = sector(number)
        return int(unpack_from(">I", raw, 4 if raw[:4] == _MAGIC else 0)[0])

    if count < 2:
        return False
    # Each round of the ring has a number, and each sector begins with that of its round.
    newest, low, high = cycle(0), 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cycle(middle) == newest else (low, middle)
    for back in range(1, min(_LONGEST_RECORD, count)):
        raw = sector(high - back)
        if raw[:4] == _MAGIC:
            (operations,) = unpack_from(">I", raw, 40)
            flags = sector(high - back + 1)[9]
            return back == 2 and operations == 1 and bool(flags & _UNMOUNT)
    return False
