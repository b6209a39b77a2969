# SPDX-License-Identifier: GPL-2.0-or-later
"""What FAT, exFAT and NTFS have in common: names in UTF-16, attributes in place of modes and
owners, and (FAT and exFAT) times by the calendar, and chains of clusters.
"""

import stat
from collections import OrderedDict
from collections.abc import Iterator
from struct import unpack

from backup_vm.files.readers.source import BLOCK, Extent, Malformed, Source

READ_ONLY, LABEL, FOLDER = 1, 8, 0x10
LONGEST_NAME = 255
"""Bytes of a name that Linux can have (NAME_MAX). These file systems have names that are longer in
UTF-8.
"""
IN_USE = "it was not unmounted: what was being written to it then may be missing"
_DAYS_BEFORE = (0, 0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 0, 0, 0)
_DAYS_TO_1980 = 3652
_PAGES = 16


def mode_of(attributes: int) -> int:
    """The mode of a file that has no owner: everybody may read it."""
    if attributes & FOLDER:
        return stat.S_IFDIR | 0o755
    return stat.S_IFREG | (0o444 if attributes & READ_ONLY else 0o644)


def utf8(raw: bytes) -> bytes:
    """A name in UTF-16 as bytes of a name of Linux; halves of surrogates are kept as they are."""
    return raw.decode("utf-16-le", "surrogatepass").encode("utf-8", "surrogatepass")


def cut(name: bytes, mark: str) -> bytes:
    """A name that Linux can have: of a longer one its beginning, and ``mark``, which no other file
    of the folder has.
    """
    if len(name) <= LONGEST_NAME:
        return name
    end = f"~{mark}".encode()
    kept = name[: LONGEST_NAME - len(end)]
    return kept.decode("utf-8", "ignore").encode() + end


def time_of(date: int, time: int, hundredths: int = 0) -> int:
    """Nanoseconds since 1970, of a date and time of DOS, as if its clock showed UTC: which zone it
    showed is not written anywhere. What is no date is read as Linux reads it.
    """
    year, month, day = date >> 9, max(date >> 5 & 15, 1), max(date & 31, 1) - 1
    leaps = (year + 3) // 4 - (year > 120)  # 2100 has no 29 February
    if year % 4 == 0 and year != 120 and month > 2:
        leaps += 1
    days = year * 365 + leaps + _DAYS_BEFORE[month] + day + _DAYS_TO_1980
    seconds = (time >> 11) * 3600 + (time >> 5 & 63) * 60 + (time & 31) * 2
    return (days * 86400 + seconds) * 10**9 + hundredths * 10**7


class FilesOnly:
    """What a reader says of file systems in which there is nothing but files and folders."""

    def contents(self, node: int, offset: int, length: int) -> bytes:
        """See Reader: all have a place."""
        raise Malformed("a file has no contents there")

    def link(self, node: int) -> bytes:
        """See Reader: there are none."""
        raise Malformed("it is no link")

    def attributes(self, node: int) -> Iterator[tuple[bytes, bytes]]:
        """See Reader: there are none."""
        return iter(())


class Clusters:
    """A file allocation table, and the clusters that it is of."""

    def __init__(
        self, source: Source, table: int, bits: int, first: int, size: int, count: int
    ) -> None:
        """``table`` is where the table is, of entries of so many bits (12, 16, 28, 32);
        ``first`` where the first cluster is, which has number 2; each has ``size`` bytes.
        """
        self._source, self._table, self._bits = source, table, bits
        self._first, self.size, self._end = first, size, count + 2
        self._mask = (1 << bits) - 1
        self._last = self._mask - 7
        """From here on an entry says that its cluster is the last one."""
        self._each = BLOCK // (2 if bits == 16 else 4)
        self._pages: OrderedDict[int, tuple[int, ...]] = OrderedDict()
        self._all = source.read(table, -(-self._end * 3 // 2)) if bits == 12 else b""

    def at(self, cluster: int) -> int:
        """Where a cluster is."""
        return self._first + (cluster - 2) * self.size

    def _next(self, cluster: int) -> int:
        if self._bits == 12:
            at = cluster * 3 // 2
            pair = self._all[at] | self._all[at + 1] << 8
            return pair >> 4 if cluster & 1 else pair & self._mask
        number, index = divmod(cluster, self._each)
        page = self._pages.get(number)
        if page is None:
            at, width = number * BLOCK, BLOCK // self._each
            raw = self._source.read(self._table + at, min(BLOCK, self._end * width - at))
            page = unpack(f"<{len(raw) // width}{'H' if width == 2 else 'I'}", raw)
            self._pages[number] = page
            if len(self._pages) > _PAGES:
                self._pages.popitem(last=False)
        return page[index] & self._mask

    def runs(self, first: int, most: int) -> Iterator[tuple[int, int]]:
        """A chain, as runs of clusters that follow each other: the first one, and how many. At most
        ``most`` clusters, so that a chain without an end has one. Raises Malformed.
        """
        cluster, left = first, min(most, self._end)
        while left > 0:
            self.must_be(cluster, 1)
            start, count, following = cluster, 1, self._next(cluster)
            while following == cluster + 1 and count < left and following < self._end:
                cluster, count, following = following, count + 1, self._next(following)
            yield start, count
            left -= count
            if following >= self._last:
                return
            cluster = following

    def of(self, size: int) -> int:
        """How many clusters a file of this size has."""
        return -(-size // self.size)

    def extents(self, runs: Iterator[tuple[int, int]], size: int) -> Iterator[Extent]:
        """Where a file's contents are. Raises Malformed where its chain is too short."""
        done = 0
        for first, count in runs:
            length = min(count * self.size, size - done)
            yield Extent(done, length, self._source.place(self.at(first), length))
            done += length
        if done < size:
            raise Malformed("a file is shorter than it says")

    def must_be(self, cluster: int, count: int) -> None:
        """Raise Malformed unless these are clusters."""
        if cluster < 2 or count < 0 or cluster + count > self._end:
            raise Malformed("a chain of clusters is damaged")

    def entries(self, runs: Iterator[tuple[int, int]], most: int) -> Iterator[tuple[int, bytes]]:
        """Where each entry of a folder is, and its 32 bytes; raises Malformed beyond ``most``
        bytes.
        """
        for cluster, count in runs:
            length = count * self.size
            most -= length
            if most < 0:
                raise Malformed("a folder is too large")
            yield from records(self._source, self.at(cluster), length)


def records(source: Source, start: int, length: int) -> Iterator[tuple[int, bytes]]:
    """The entries of 32 bytes in one place."""
    for at in range(start, start + length, BLOCK):
        raw = source.read(at, min(BLOCK, start + length - at))
        for i in range(0, len(raw), 32):
            yield at + i, raw[i : i + 32]
