# SPDX-License-Identifier: GPL-2.0-or-later
"""exFAT.

Microsoft's "exFAT file system specification" has the layout. A file is a set of entries that follow
each other: it, where it is, and its name. A node is where the first two are.
"""

import stat
from collections.abc import Iterator
from struct import Struct

from backup_vm.files.readers.dos import (
    FOLDER,
    IN_USE,
    Clusters,
    FilesOnly,
    cut,
    mode_of,
    time_of,
    utf8,
)
from backup_vm.files.readers.source import (
    LARGEST_FILE,
    Absent,
    Extent,
    Malformed,
    Name,
    Source,
    Stat,
)

_BOOT = Struct("<IIIIIIHHBBB")
"""From byte 80 on: where the table is, its length, where the clusters are (sectors), how many, the
root's first one, (serial, version), flags, logarithms of a sector's bytes and a cluster's sectors,
tables.
"""
_FILE = Struct("<BBHHHHHHHHHBBBBB")
"""Type, entries that follow, (checksum), attributes, (reserved), time and date of creation, change
and access, hundredths of the first two, zones of all three.
"""
_STREAM = Struct("<BBBBHHQIIQ")
"""Type, flags, -, length of the name, (hash, -), bytes that are written, -, first cluster, size."""
_ROOT = 0
_BITS = 64
_SECOND_TABLE, _DIRTY = 1, 2
_IS_FILE, _IS_STREAM, _IS_NAME = 0x85, 0xC0, 0xC1
_IN_A_ROW = 2
"""That a file's clusters follow each other: then the table does not have them."""
_LARGEST_FOLDER = 256 << 20
_BOOT_SECTORS, _CHANGING = 11, (106, 107, 112)
"""Sectors with a checksum, and the bytes of flags and of use, which it does not cover."""
_ZONE = 0x80


class ExFat(FilesOnly):
    """One file system."""

    kind = "exfat"
    root = _ROOT

    def __init__(self, source: Source) -> None:
        self._source = source
        if source.size < 512 or source.read(3, 8) != b"EXFAT   ":
            raise Absent
        raw = source.read(0, 512)
        table, length, first, count, self._root, _, _, flags, sector, each, tables = (
            _BOOT.unpack_from(raw, 80)
        )
        if not 9 <= sector <= 12 or sector + each > 25 or tables not in (1, 2):
            raise Malformed("the boot sector of exFAT is damaged")
        if flags & _SECOND_TABLE and tables == 2:
            table += length
        count = min(count, (length << sector) // 4 - 2)
        if count <= 0:
            raise Malformed("the boot sector of exFAT is damaged")
        self._clusters = Clusters(
            source, table << sector, 32, first << sector, 1 << sector + each, count
        )
        self.notes = [IN_USE] if flags & _DIRTY else []
        self._sector = 1 << sector

    def faults(self) -> Iterator[str]:
        """Whether the boot sectors have the checksum that the one behind them says."""
        size, total = _BOOT_SECTORS * self._sector, 0
        for at, byte in enumerate(self._source.read(0, size)):
            if at not in _CHANGING:
                total = ((total & 1) << 31) + (total >> 1) + byte & 0xFFFFFFFF
        if self._source.read(size, 4) != total.to_bytes(4, "little"):
            yield "its boot sectors have another checksum"

    def _file(self, node: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        mask = (1 << _BITS) - 1
        file = _FILE.unpack_from(self._source.read(node >> _BITS, 32))
        stream = _STREAM.unpack(self._source.read(node & mask, 32))
        if file[0] != _IS_FILE or stream[0] != _IS_STREAM:
            raise Malformed("there is no file where one is said to be")
        return file, stream

    def stat(self, node: int) -> Stat:
        """See Reader."""
        if node == _ROOT:
            return Stat(mode_of(FOLDER), 1, 0, 0, 0, 0, 0, 0)
        file, stream = self._file(node)
        mode, size = mode_of(file[3]), stream[9]
        if size > LARGEST_FILE:
            raise Malformed("a file has an impossible size")
        modified = _time(file[7], file[8], file[12], file[14])
        accessed = _time(file[9], file[10], 0, file[15])
        size = 0 if stat.S_ISDIR(mode) else size
        return Stat(mode, 1, 0, 0, size, accessed, modified, modified)

    def _runs(self, stream: tuple[int, ...], clusters: int) -> Iterator[tuple[int, int]]:
        if not stream[1] & _IN_A_ROW:
            return self._clusters.runs(stream[8], clusters)
        if clusters:
            self._clusters.must_be(stream[8], clusters)
        return iter(((stream[8], clusters),) if clusters else ())

    def _entries(self, node: int) -> Iterator[tuple[int, bytes]]:
        each = self._clusters.size
        if node == _ROOT:
            most = _LARGEST_FOLDER // each + 1
            runs = self._clusters.runs(self._root, most)
        else:
            file, stream = self._file(node)
            if not file[3] & FOLDER or stream[9] > _LARGEST_FOLDER:
                raise Malformed("a folder is damaged")
            runs = self._runs(stream, self._clusters.of(stream[9]))
        return self._clusters.entries(runs, _LARGEST_FOLDER + each)

    def names(self, node: int) -> Iterator[Name]:
        """See Reader."""
        entries = self._entries(node)
        for at, raw in entries:
            if not raw[0]:
                return
            if raw[0] != _IS_FILE:
                continue
            follow = [one for _, one in zip(range(raw[1]), entries, strict=False)]
            if len(follow) < 2 or follow[0][1][0] != _IS_STREAM:
                raise Malformed("a folder is damaged")
            (where, stream), *rest = follow
            units = b"".join(one[2:] for _, one in rest if one[0] == _IS_NAME)[: 2 * stream[3]]
            if len(units) != 2 * stream[3]:
                raise Malformed("a folder is damaged")
            yield Name(cut(utf8(units), f"{at:x}"), at << _BITS | where)

    def extents(self, node: int) -> Iterator[Extent]:
        """See Reader."""
        file, stream = self._file(node)
        size = min(stream[6], stream[9])  # what is not written is zeros
        if file[3] & FOLDER:
            raise Malformed("an entry is not of the type that is said elsewhere")
        return self._clusters.extents(self._runs(stream, self._clusters.of(size)), size)


def _time(time: int, date: int, hundredths: int, zone: int) -> int:
    """Nanoseconds since 1970; the zone is in quarters of an hour, where there is one."""
    quarters = (zone & 0x7F) - (0x80 if zone & 0x40 else 0) if zone & _ZONE else 0
    return time_of(date, time, hundredths) - quarters * 900 * 10**9
