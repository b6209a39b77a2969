# SPDX-License-Identifier: GPL-2.0-or-later
"""Partition tables (GPT and MBR), and which file system is where."""

from collections.abc import Iterator
from struct import unpack_from
from typing import NamedTuple

from backup_vm.files.readers.btrfs import Btrfs
from backup_vm.files.readers.exfat import ExFat
from backup_vm.files.readers.ext4 import Ext4
from backup_vm.files.readers.fat import Fat, is_fat
from backup_vm.files.readers.lvm import Placed, Volume, is_physical, volumes
from backup_vm.files.readers.ntfs import Ntfs
from backup_vm.files.readers.source import Absent, Malformed, Reader, Source, Unsupported
from backup_vm.files.readers.xfs import Xfs

_READERS = (Ext4, Xfs, Btrfs, Ntfs, ExFat, Fat)
_MOST = 128
_FIRST_VOLUME, _MOST_VOLUMES = 201, 500
"""Numbers of logical volumes, behind those that partitions have."""
_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
_READ = (
    (1080, b"\x53\xef", "ext4"),
    (0, b"XFSB", "xfs"),
    (65600, b"_BHRfS_M", "btrfs"),
    (3, b"EXFAT   ", "exfat"),
    (3, b"NTFS    ", "ntfs"),
)
_LVM = "LVM"
_OTHERS = (
    (0, b"LUKS\xba\xbe", "LUKS (encrypted)"),
    (3, b"-FVE-FS-", "BitLocker (encrypted)"),
    (4086, b"SWAPSPACE2", "swap"),
    (32769, b"CD001", "iso9660"),
    (0, b"hsqs", "squashfs"),
)
_WITH_BOOT_SECTOR = ("vfat", "exfat", "ntfs", "BitLocker (encrypted)")
"""Their first sector ends like one with a partition table."""


class Part(NamedTuple):
    """A partition: its number, as Linux counts, where it is, and what is in it."""

    number: int
    start: int
    size: int
    kind: str
    """Empty where that is not known."""
    readable: bool
    name: str = ""
    """Of a logical volume, which is no range of the image: ``start`` is 0."""


def parts(source: Source) -> list[Part]:
    """The partitions, or one of number 0 that is all of the image; then the logical volumes."""
    found = _partitions(source)
    for number, volume in _volumes(source, found):
        if volume.problem:
            what = Part(number, 0, volume.size, f"{_LVM} {volume.problem}", False, volume.name)
        else:
            here = _part(source.scattered(volume.pieces, volume.size), number, 0, volume.size)
            what = here._replace(name=volume.name)
        found.append(what)
    return found


def _volumes(source: Source, found: list[Part]) -> list[tuple[int, Volume]]:
    """Logical volumes that have contents and fit into the image, with their numbers. What cannot
    be said of them hides no partition.
    """
    physical = [(part.start, part.size) for part in found if part.kind == _LVM]
    try:
        named = volumes(source, physical)
    except (Malformed, Unsupported):
        return []
    sound = [volume for volume in named if 0 < volume.size <= source.size]
    return list(enumerate(sound[:_MOST_VOLUMES], _FIRST_VOLUME))


def _partitions(source: Source) -> list[Part]:
    whole = _part(source, 0, 0, source.size)
    if whole.readable or source.size < 1024 or source.read(510, 2) != b"\x55\xaa":
        return [whole]
    if whole.kind in _WITH_BOOT_SECTOR:
        return [whole]
    found = [
        _part(source, number, start, min(size, source.size - start))
        for number, start, size in _table(source)
        if size and start < source.size
    ]
    return found or [whole]


def opened(source: Source, part: Part) -> Reader:
    """The reader of what is there. Raises Malformed, Unsupported, Absent."""
    if part.name:
        for number, volume in _volumes(source, _partitions(source)):
            if number == part.number and not volume.problem:
                inside = source.scattered(volume.pieces, volume.size)
                return Placed(_reader(inside), volume)
        raise Absent
    return _reader(source if part.number == 0 else source.part(part.start, part.size))


def _reader(here: Source) -> Reader:
    for reader in _READERS:
        try:
            return reader(here)
        except Absent:
            continue
    raise Absent


def _part(image: Source, number: int, start: int, size: int) -> Part:
    here = image.part(start, size)

    def has(at: int, magic: bytes) -> bool:
        return at + len(magic) <= size and here.read(at, len(magic)) == magic

    for at, magic, kind in _READ:
        if has(at, magic):
            return Part(number, start, size, kind, True)
    if is_physical(here):
        return Part(number, start, size, _LVM, False)
    for at, magic, kind in _OTHERS:
        if has(at, magic):
            return Part(number, start, size, kind, False)
    readable = is_fat(here)
    return Part(number, start, size, "vfat" if readable else "", readable)


def _table(source: Source) -> Iterator[tuple[int, int, int]]:
    """Number, first byte and bytes of each partition."""
    rows = list(_rows(source, 0))
    if any(kind == _PROTECTIVE for kind, _, _ in rows):
        for sector in (512, 4096):
            if source.size >= 2 * sector and source.read(sector, 8) == b"EFI PART":
                yield from _gpt(source, sector)
                return
        raise Malformed("the partition table is damaged")
    extended = 0
    for number, (kind, start, count) in enumerate(rows, 1):
        if kind in _EXTENDED:
            extended = extended or start
        elif kind:
            yield number, start * 512, count * 512
    if extended:
        yield from _logical(source, extended)


def _rows(source: Source, at: int) -> Iterator[tuple[int, int, int]]:
    raw = source.read(at, 512)
    if raw[510:] != b"\x55\xaa":
        raise Malformed("the partition table is damaged")
    for i in range(446, 510, 16):
        yield raw[i + 4], *unpack_from("<II", raw, i + 8)


def _logical(source: Source, extended: int) -> Iterator[tuple[int, int, int]]:
    at, seen = extended, set()
    for number in range(5, _MOST):
        if at in seen:
            raise Malformed("the partition table is damaged")
        seen.add(at)
        (kind, start, count), (following, distance, _), *_ = _rows(source, at * 512)
        if kind:
            yield number, (at + start) * 512, count * 512
        if following not in _EXTENDED:
            return
        at = extended + distance


def _gpt(source: Source, sector: int) -> Iterator[tuple[int, int, int]]:
    header = source.read(sector, 92)
    table, count, size = unpack_from("<QII", header, 72)
    if size not in (128, 256, 512) or count > 4096:
        raise Malformed("the partition table is damaged")
    for number in range(1, min(count, _MOST) + 1):
        raw = source.read(table * sector + (number - 1) * size, 128)
        first, last = unpack_from("<QQ", raw, 32)
        if raw[:16] != bytes(16) and first <= last:
            yield number, first * sector, (last - first + 1) * sector
