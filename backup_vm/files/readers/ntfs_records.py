# SPDX-License-Identifier: GPL-2.0-or-later
"""The records of NTFS, which describe files, and the streams of bytes that these have.

Linux, fs/ntfs3/ntfs.h, has the layout.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from struct import Struct, unpack_from
from typing import NamedTuple

from backup_vm.files.readers.source import LARGEST_FILE, Malformed, Source

LIST, DATA = 0x20, 0x80
NUMBER = (1 << 48) - 1
"""A reference is the number of a record, and above it how often that was used before."""
_IN_USE = 1
_BLOCK = 512
_RECORD = Struct("<4sHHQHHHHIIQ")
"""FILE, where the last bytes of sectors are, how many, (log), how often used, names, where the
attributes begin, flags, length, (room), the record that this one belongs to.
"""
_ATTRIBUTE = Struct("<IIBBHHH")
"""Type, length, whether its value is elsewhere, length and place of the name, flags, (number)."""
_ELSEWHERE = Struct("<QQHHIQQQ")
"""First and last cluster within the value, where the runs are, unit of compression, -, room, size,
and how much of that was written.
"""
_LISTED = Struct("<IHBBQQ")
_END = 0xFFFFFFFF
_LONGEST_LIST = 256 << 10
_MOST_RUNS = 1 << 20
_KEPT = 256
Run = tuple[int, int, int | None]
"""First cluster within a value, how many, and where that is; None for a hole."""


class Attribute(NamedTuple):
    """An attribute, or a piece of one: its value, or where that is."""

    kind: int
    name: bytes
    """In UTF-16."""
    flags: int
    value: bytes | None
    first: int = 0
    runs: bytes = b""
    unit: int = 0
    size: int = 0
    written: int = 0


class Record(NamedTuple):
    """One record: flags, names, whose it is, and its attributes."""

    used: int
    links: int
    flags: int
    base: int
    attributes: list[Attribute]


def mended(raw: bytes, magic: bytes) -> bytes:
    """What is guarded against being half written: the last two bytes of every sector are the same
    mark, and what belongs there is elsewhere. Raises Malformed.
    """
    at, count = unpack_from("<HH", raw, 4)
    if raw[:4] != magic or count != len(raw) // _BLOCK + 1 or at + 2 * count > len(raw):
        raise Malformed("a record of NTFS is damaged")
    out, mark = bytearray(raw), raw[at : at + 2]
    for number in range(1, count):
        end = number * _BLOCK
        if raw[end - 2 : end] != mark:
            raise Malformed("a record of NTFS was half written")
        out[end - 2 : end] = raw[at + 2 * number : at + 2 * number + 2]
    return bytes(out)


def _attributes(raw: bytes, at: int, end: int) -> Iterator[Attribute]:
    while at + 8 <= end:
        kind, length = unpack_from("<II", raw, at)
        if kind == _END:
            return
        if length < _ATTRIBUTE.size + 8 or at + length > end:
            break
        _, _, elsewhere, named, where, flags, _ = _ATTRIBUTE.unpack_from(raw, at)
        one = raw[at : at + length]
        name = one[where : where + 2 * named]
        if elsewhere:
            first, _, runs, unit, _, _, size, written = _ELSEWHERE.unpack_from(one, 16)
            if unit > 8 or size > LARGEST_FILE:
                break
            yield Attribute(kind, name, flags, None, first, one[runs:], unit, size, written)
        else:
            size, where = unpack_from("<IH", one, 16)
            if where + size > length:
                break
            yield Attribute(kind, name, flags, one[where : where + size], size=size)
        at += length
    raise Malformed("a record of NTFS is damaged")


def _runs(pieces: list[Attribute]) -> Iterator[Run]:
    reached, count = 0, 0
    for piece in pieces:
        raw, at, where = piece.runs, 0, 0
        if piece.first != reached:
            raise Malformed("the map of a file is damaged")
        while at < len(raw) and raw[at]:
            lengths, places = raw[at] & 15, raw[at] >> 4
            middle, end = at + 1 + lengths, at + 1 + lengths + places
            length = int.from_bytes(raw[at + 1 : middle], "little")
            where += int.from_bytes(raw[middle:end], "little", signed=True)
            count += 1
            wrong = end > len(raw) or not length or length > LARGEST_FILE or where < 0
            if wrong or lengths > 8 or places > 8 or count > _MOST_RUNS:
                raise Malformed("the map of a file is damaged")
            yield reached, length, where if places else None
            reached, at = reached + length, end


class Stream:
    """An attribute's value, of one or more pieces that are in order."""

    def __init__(self, source: Source, cluster: int, pieces: list[Attribute]) -> None:
        self._source, self._cluster, head = source, cluster, pieces[0]
        self.value, self.flags, self.size = head.value, head.flags, head.size
        self.written = min(head.written, head.size)
        self.unit = 1 << head.unit if head.unit else 0
        """Clusters that are compressed together."""
        if any((piece.value is None) != (head.value is None) for piece in pieces):
            raise Malformed("a record of NTFS is damaged")
        self.runs = list(_runs(pieces)) if head.value is None else []
        self._starts = [run[0] for run in self.runs]

    def pieces(self, first: int, end: int) -> Iterator[Run]:
        """Runs of clusters from ``first`` to ``end``."""
        at = max(bisect_right(self._starts, first) - 1, 0)
        for begin, count, where in self.runs[at:]:
            if begin >= end:
                return
            start, stop = max(begin, first), min(begin + count, end)
            if start < stop:
                yield start, stop - start, None if where is None else where + start - begin

    def read(self, offset: int, length: int) -> bytes:
        """Bytes as they are stored; holes are zeros. Raises Malformed beyond the end."""
        if offset + length > self.size:
            raise Malformed("something is said to be beyond the end of a file")
        if self.value is not None:
            return self.value[offset : offset + length]
        size = self._cluster
        first, end = offset // size, -(-(offset + length) // size)
        found = []
        for begin, count, where in self.pieces(first, end):
            start, stop = max(offset, begin * size), min(offset + length, (begin + count) * size)
            if where is None:
                found.append(bytes(stop - start))
            else:
                found.append(self._source.read(where * size + start - begin * size, stop - start))
        data = b"".join(found)
        if len(data) != length:
            raise Malformed("the map of a file is damaged")
        return data


class Records:
    """The table of all records, which is a file itself: that of record 0."""

    def __init__(self, source: Source, cluster: int, place: int, size: int) -> None:
        self._source, self._cluster, self._size = source, cluster, size
        self._kept: OrderedDict[int, Record] = OrderedDict()
        first = self._parsed(source.read(place, size))
        pieces = [one for one in first.attributes if one.kind == DATA and not one.name]
        if not pieces:
            raise Malformed("the table of files is damaged")
        self._table = Stream(source, cluster, pieces)
        for number in self._others(0, first):
            # What tells of a later piece of the table is in pieces before it.
            more = self._one(number).attributes
            pieces += [one for one in more if one.kind == DATA and not one.name]
            pieces.sort(key=lambda piece: piece.first)
            self._table = Stream(source, cluster, pieces)

    def _parsed(self, raw: bytes) -> Record:
        raw = mended(raw, b"FILE")
        _, _, _, _, used, links, at, flags, length, _, base = _RECORD.unpack_from(raw)
        if not flags & _IN_USE:
            raise Malformed("a file is said to be where none is")
        attributes = list(_attributes(raw, at, min(length, len(raw))))
        return Record(used, links, flags, base & NUMBER, attributes)

    def _one(self, number: int) -> Record:
        record = self._kept.get(number)
        if record is None:
            record = self._parsed(self._table.read(number * self._size, self._size))
            self._kept[number] = record
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return record

    def _others(self, number: int, record: Record) -> list[int]:
        """The other records that a file has, as its list of attributes names them."""
        pieces = [one for one in record.attributes if one.kind == LIST]
        if not pieces:
            return []
        listed = Stream(self._source, self._cluster, pieces)
        if listed.size > _LONGEST_LIST:
            raise Malformed("a record of NTFS is damaged")
        raw, at = listed.read(0, listed.size), 0
        found: dict[int, None] = {}
        while at + _LISTED.size <= len(raw):
            _, length, _, _, _, where = _LISTED.unpack_from(raw, at)
            if length < _LISTED.size:
                raise Malformed("a record of NTFS is damaged")
            found[where & NUMBER] = None
            at += length
        return [one for one in found if one != number]

    def of(self, reference: int) -> Record:
        """A file's record, with the attributes of all that it has. Raises Malformed."""
        number, used = reference & NUMBER, reference >> 48
        record = self._one(number)
        if record.base or (used and used != record.used):
            raise Malformed("a file is said to be where none is")
        attributes = list(record.attributes)
        for other in self._others(number, record):
            more = self._one(other)
            if more.base != number:
                raise Malformed("a record of NTFS is of another file")
            attributes += more.attributes
        attributes.sort(key=lambda one: one.first)
        return record._replace(attributes=attributes)

    def stream(self, record: Record, kind: int, name: bytes = b"") -> Stream | None:
        """The value of an attribute, if there is one."""
        pieces = [one for one in record.attributes if one.kind == kind and one.name == name]
        return Stream(self._source, self._cluster, pieces) if pieces else None
