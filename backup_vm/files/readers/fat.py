# SPDX-License-Identifier: GPL-2.0-or-later
"""FAT with entries of 12, 16 and 32 bits, with long names.

Microsoft's "FAT32 File System Specification" has the layout, Linux, fs/fat, what is made of it. A
node is where a file's entry is: there are no inodes.
"""

import stat
from collections.abc import Iterator
from struct import Struct, unpack_from

from backup_vm.files.readers.dos import (
    FOLDER,
    IN_USE,
    LABEL,
    LONGEST_NAME,
    Clusters,
    FilesOnly,
    mode_of,
    records,
    time_of,
    utf8,
)
from backup_vm.files.readers.source import (
    BLOCK,
    Absent,
    Extent,
    Malformed,
    Name,
    Source,
    Stat,
)

_BOOT = Struct("<HBHBHHBH")
"""From byte 11 on: bytes of a sector, sectors of a cluster, sectors before the tables, tables,
entries of the root, sectors, (media), sectors of a table.
"""
_ENTRY = Struct("<11sBBBHHHHHHHI")
"""Name, attributes, cases, hundredths, times and dates (created; accessed: a date; modified), with
the two halves of the first cluster around them, and the size.
"""
_ROOT = 0
_FEW, _MANY = 0xFF4, 0xFFF4
"""From how many clusters on there are 16 bits, and up to how many."""
_ONE_TABLE = 0x80
"""That the others are not kept up."""
_FLAGS = 8
"""Bytes of the first two entries, at most."""
_LARGEST_FOLDER = 65536 * 32
_LONG, _LAST_PIECE = 0x0F, 0x40
_PIECES = 20
_DELETED, _KANJI = 0xE5, 0x05
_HIGH = bytes(range(128, 256)).decode("cp437")
"""What short names mean by bytes above 127: which code page they are in is not written anywhere."""


class Fat(FilesOnly):
    """One file system."""

    kind = "vfat"
    root = _ROOT

    def __init__(self, source: Source) -> None:
        self._source = source
        if not is_fat(source):
            raise Absent
        raw = source.read(0, 512)
        sector, each, reserved, tables, entries, sectors, _, length = _BOOT.unpack_from(raw, 11)
        sectors = sectors or unpack_from("<I", raw, 32)[0]
        wide = not length
        length = length or unpack_from("<I", raw, 36)[0]
        if sector not in (512, 1024, 2048, 4096) or not each or each & each - 1:
            raise Malformed("the boot sector of FAT is damaged")
        self._fixed = (reserved + tables * length) * sector
        """Where the root is, where it is no chain of clusters."""
        self._fixed_size = entries * 32
        first = self._fixed + -(-self._fixed_size // sector) * sector
        count = (sectors - first // sector) // each
        bits = 28 if wide else 16 if count > _FEW else 12
        # bits of a table: of 28, entries have 32
        count = min(count, length * sector * 8 // (32 if wide else bits) - 2)
        if not reserved or not tables or count <= 0 or (count > _MANY and not wide):
            raise Malformed("the boot sector of FAT is damaged")
        self._root_cluster = unpack_from("<I", raw, 44)[0] if wide else 0
        self._clusters = Clusters(source, reserved * sector, bits, first, each * sector, count)
        self.notes = [IN_USE] if raw[65 if wide else 37] & 1 else []
        alike = not (wide and unpack_from("<H", raw, 40)[0] & _ONE_TABLE)
        self._tables = [(reserved + n * length) * sector for n in range(tables if alike else 1)]
        self._length = length * sector

    def faults(self) -> Iterator[str]:
        """Whether all tables say the same, apart from their first entries, which are flags."""
        first, *others = self._tables
        for at in range(0, self._length, BLOCK):
            size = min(BLOCK, self._length - at)
            flags = _FLAGS if not at else 0
            here = self._source.read(first + at, size)[flags:]
            if any(self._source.read(one + at, size)[flags:] != here for one in others):
                yield "its tables of clusters differ"
                return

    def _entry(self, node: int, want: int) -> tuple[int, int]:
        """First cluster and size of a file of this type."""
        raw = _ENTRY.unpack(self._source.read(node, 32))
        if stat.S_IFMT(mode_of(raw[1])) != want or raw[1] & LABEL:
            raise Malformed("an entry is not of the type that is said elsewhere")
        high = raw[7] if self._root_cluster else 0  # else it has another meaning
        return high << 16 | raw[10], raw[11]

    def stat(self, node: int) -> Stat:
        """See Reader."""
        if node == _ROOT:
            return Stat(mode_of(FOLDER), 1, 0, 0, 0, 0, 0, 0)
        raw = _ENTRY.unpack(self._source.read(node, 32))
        mode, accessed, time, date = mode_of(raw[1]), raw[6], raw[8], raw[9]
        modified = time_of(date, time)
        size = 0 if stat.S_ISDIR(mode) else raw[11]
        return Stat(mode, 1, 0, 0, size, time_of(accessed, 0), modified, modified)

    def _records(self, node: int) -> Iterator[tuple[int, bytes]]:
        if node == _ROOT and not self._root_cluster:
            return records(self._source, self._fixed, self._fixed_size)
        cluster = self._root_cluster if node == _ROOT else self._entry(node, stat.S_IFDIR)[0]
        most = _LARGEST_FOLDER // self._clusters.size + 1
        return self._clusters.entries(self._clusters.runs(cluster, most), _LARGEST_FOLDER)

    def names(self, node: int) -> Iterator[Name]:
        """See Reader."""
        long = _LongName()
        for at, raw in self._records(node):
            if not raw[0]:
                return
            if raw[0] == _DELETED:
                long = _LongName()
            elif raw[11] & 0x3F == _LONG:
                long.add(raw)
            else:
                if not raw[11] & LABEL and raw[:11] not in (b".          ", b"..         "):
                    name = long.of(raw[:11]) or b""
                    # one that is too long for Linux has a short one
                    if not 0 < len(name) <= LONGEST_NAME:
                        name = short_name(raw)
                    if name:
                        yield Name(name, at)
                long = _LongName()

    def extents(self, node: int) -> Iterator[Extent]:
        """See Reader."""
        cluster, size = self._entry(node, stat.S_IFREG)
        runs = self._clusters.runs(cluster, self._clusters.of(size))
        return self._clusters.extents(runs, size)


def is_fat(source: Source) -> bool:
    """Whether a boot sector says so: a partition table begins alike, without these words."""
    if source.size < 512:
        return False
    raw = source.read(0, 512)
    return raw[510:] == b"\x55\xaa" and b"FAT" in (raw[54:57], raw[82:85])


class _LongName:
    """The pieces of a long name, the last one first, in entries before the one that they name."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._left = self._sum = 0
        """How many pieces are to come, and the checksum of the short name."""

    def add(self, raw: bytes) -> None:
        """One more. Pieces that do not follow each other are of no name."""
        number, total = raw[0] & ~_LAST_PIECE, raw[13]
        if raw[0] & _LAST_PIECE and 0 < number <= _PIECES:
            self._pieces, self._left, self._sum = [], number, total
        elif number != self._left or total != self._sum:
            self._pieces, self._left = [], 0
        if self._left:
            self._pieces.append(raw[1:11] + raw[14:26] + raw[28:32])
            self._left -= 1

    def of(self, short: bytes) -> bytes | None:
        """The name in UTF-8, if it is that of the file with this short one."""
        total = 0
        for byte in short:
            total = ((total & 1) << 7) + (total >> 1) + byte & 0xFF
        if self._left or not self._pieces or total != self._sum:
            return None
        raw = b"".join(reversed(self._pieces))
        ends = (i for i in range(0, len(raw), 2) if raw[i : i + 2] == b"\0\0")
        return utf8(raw[: next(ends, len(raw))])


def short_name(raw: bytes) -> bytes:
    """The name of eight letters and three; two bits say that they are small letters."""
    text = "".join(chr(byte) if byte < 128 else _HIGH[byte - 128] for byte in raw[:11])
    if raw[0] == _KANJI:
        text = _HIGH[_DELETED - 128] + text[1:]
    base, extension = text[:8].rstrip(" "), text[8:].rstrip(" ")
    if raw[12] & 8:
        base = base.lower()
    if raw[12] & 16:
        extension = extension.lower()
    return (f"{base}.{extension}" if extension else base).encode()
