# SPDX-License-Identifier: GPL-2.0-or-later
"""Logical volumes of LVM2, where all physical volumes that they are on are in the image.

LVM2, lib/format_text/layout.h and lib/label/label.h, have the layout. What describes a group is
text, of which each physical volume has a copy.
"""

from bisect import bisect_right
from collections.abc import Iterator
from struct import Struct, unpack_from
from typing import NamedTuple

from backup_vm.files.readers.lvm_text import Section, parsed
from backup_vm.files.readers.source import (
    Extent,
    Malformed,
    Name,
    Reader,
    Source,
    Stat,
    Unsupported,
)

_SECTOR = 512
_LABEL = Struct("<8sQII8s")
"""LABELONE, which sector this is, (checksum), where in it the rest begins, LVM2 001."""
_AREA = Struct("<I16sIQQ")
"""(Checksum), magic, version, and where the area is; then where in it the text is, in a ring that
begins behind this sector.
"""
_MAGIC = b" LVM2 x[5A%r0N*>"
_TEXT = Struct("<QQII")
_IGNORED = 1
_LONGEST_TEXT = 4 << 20
_MOST_AREAS = 8
_CHECKSUM = 0xF597A6CF
"""What LVM begins a CRC-32 with, of which it does not turn the bits round in the end."""


class Segment(NamedTuple):
    """A part of a logical volume, in stripes that are each in one place: where it begins, its
    length, the bytes of a stripe, and the places of its columns.
    """

    start: int
    length: int
    stripe: int
    columns: tuple[int, ...]


class Volume:
    """A logical volume. ``problem`` says why it cannot be read, where it cannot."""

    def __init__(self, name: str, size: int, segments: list[Segment], problem: str) -> None:
        self.name, self.size, self.problem = name, size, problem
        self._segments = segments
        self._starts = [segment.start for segment in segments]

    def pieces(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Where in the image a range is: places and lengths."""
        while length:
            segment = self._segments[bisect_right(self._starts, offset) - 1]
            row, within = divmod(offset - segment.start, segment.stripe)
            row, column = divmod(row, len(segment.columns))
            step = min(length, segment.stripe - within, segment.start + segment.length - offset)
            if step <= 0:
                raise Malformed("something is said to be beyond the end of a logical volume")
            yield segment.columns[column] + row * segment.stripe + within, step
            offset, length = offset + step, length - step


class Placed:
    """A reader of a logical volume, whose extents are in the image."""

    def __init__(self, reader: Reader, volume: Volume) -> None:
        self._reader, self._volume = reader, volume
        self.kind, self.notes, self.root = reader.kind, reader.notes, reader.root

    def stat(self, node: int) -> Stat:
        """See Reader."""
        return self._reader.stat(node)

    def names(self, node: int) -> Iterator[Name]:
        """See Reader."""
        return self._reader.names(node)

    def extents(self, node: int) -> Iterator[Extent]:
        """See Reader."""
        for extent in self._reader.extents(node):
            if extent.place is None:
                yield extent
                continue
            offset = extent.offset
            for place, length in self._volume.pieces(extent.place, extent.length):
                yield Extent(offset, length, place)
                offset += length

    def contents(self, node: int, offset: int, length: int) -> bytes:
        """See Reader."""
        return self._reader.contents(node, offset, length)

    def link(self, node: int) -> bytes:
        """See Reader."""
        return self._reader.link(node)

    def attributes(self, node: int) -> Iterator[tuple[bytes, bytes]]:
        """See Reader."""
        return self._reader.attributes(node)


def is_physical(source: Source) -> bool:
    """Whether this is a physical volume."""
    return _label_at(source) >= 0


def _label_at(source: Source) -> int:
    """Where the label is, in one of the first four sectors; -1 where there is none."""
    for at in range(0, min(4 * _SECTOR, source.size - _SECTOR + 1), _SECTOR):
        raw = source.read(at, _LABEL.size)
        if raw[:8] == b"LABELONE" and raw[24:] == b"LVM2 001":
            return at
    return -1


def volumes(image: Source, physical: list[tuple[int, int]]) -> list[Volume]:
    """All logical volumes of an image, in which physical ones are at these places, of these sizes.
    Raises Malformed.
    """
    groups: dict[str, tuple[int, str, Section]] = {}
    places: dict[str, tuple[int, int]] = {}
    for start, size in physical:
        own, text = _read(image.part(start, size))
        places[own] = (start, size)
        for name, group in text.items():
            if isinstance(group, dict) and "logical_volumes" in group:
                key, age = _text(group, "id"), _number(group, "seqno")
                if key not in groups or groups[key][0] < age:
                    groups[key] = (age, name, group)
    found = [
        volume
        for _, name, group in groups.values()
        for volume in _Group(name, group, places).volumes(image)
    ]
    return sorted(found, key=lambda volume: volume.name)


def _read(source: Source) -> tuple[str, Section]:
    """Which physical volume it is, and the newest text that is whole. Raises Malformed."""
    at = _label_at(source)
    if at < 0:
        raise Malformed("the label of a physical volume is damaged")
    raw = source.read(at, _SECTOR)
    (begin,) = unpack_from("<I", raw, 20)
    if begin + 40 > _SECTOR:
        raise Malformed("the label of a physical volume is damaged")
    own = raw[begin : begin + 32].decode("latin-1")
    places = [unpack_from("<QQ", raw, at) for at in range(begin + 40, _SECTOR - 15, 16)]
    ends = [number for number, place in enumerate(places) if place == (0, 0)]
    if len(ends) < 2:  # one after where contents are, one after where texts are
        raise Malformed("the label of a physical volume is damaged")
    newest: Section = {}
    for start, size in places[ends[0] + 1 : ends[1]][:_MOST_AREAS]:
        text = _text_in(source.part(start, size))
        if text and (not newest or _age(text) > _age(newest)):
            newest = text
    return own, newest


def _age(text: Section) -> int:
    return max((_number(one, "seqno") for one in text.values() if isinstance(one, dict)), default=0)


def _text_in(area: Source) -> Section:
    """The text of one area; none where that is not used or not whole: another one has it then."""
    import zlib

    raw = area.read(0, _SECTOR)
    _, magic, version, _, _ = _AREA.unpack_from(raw)
    at, length, checksum, flags = _TEXT.unpack_from(raw, _AREA.size)
    if magic != _MAGIC or version != 1 or not length or flags & _IGNORED:
        return {}
    if length > _LONGEST_TEXT:
        raise Unsupported("what describes a group of LVM is too large")
    if not _SECTOR <= at < area.size or length > area.size - _SECTOR:
        return {}
    first = min(length, area.size - at)
    text = area.read(at, first) + area.read(_SECTOR, length - first)
    if zlib.crc32(text, _CHECKSUM ^ 0xFFFFFFFF) ^ 0xFFFFFFFF != checksum:
        return {}
    return parsed(text)


class _Group:
    """A group: its physical volumes are those of its text that the image has."""

    def __init__(self, name: str, group: Section, places: dict[str, tuple[int, int]]) -> None:
        self._name, self._group = name, group
        self._extent = _number(group, "extent_size") * _SECTOR
        if self._extent <= 0:
            raise Malformed("what describes a group of LVM is damaged")
        self._physical: dict[str, int] = {}
        for key, one in _sections(group, "physical_volumes"):
            place = places.get(_text(one, "id").replace("-", ""))
            if place is not None:
                self._physical[key] = place[0] + _number(one, "pe_start") * _SECTOR

    def volumes(self, image: Source) -> Iterator[Volume]:
        """The logical volumes that are to be seen."""
        for name, one in _sections(self._group, "logical_volumes"):
            status = one.get("status")
            if isinstance(status, list) and "VISIBLE" in status:
                yield self._volume(image, f"{self._name}/{name}", one)

    def _volume(self, image: Source, name: str, one: Section) -> Volume:
        found: list[Segment] = []
        count, end, problem = _number(one, "segment_count"), 0, ""
        rows = [one.get(f"segment{number}") for number in range(1, min(count, len(one)) + 1)]
        if not rows or len(rows) != count:
            raise Malformed("what describes a logical volume is damaged")
        for row in rows:
            if not isinstance(row, dict) or _number(row, "start_extent") * self._extent != end:
                raise Malformed("what describes a logical volume is damaged")
            length = _number(row, "extent_count") * self._extent
            kind = _text(row, "type")
            if kind == "striped":
                segment = self._segment(image, end, length, row)
                problem = problem or ("" if segment else "on another disk")
                found += [segment] if segment else []
            else:
                problem = problem or kind[:12]
            end += length
        return Volume(name, end, found, problem)

    def _segment(self, image: Source, start: int, length: int, row: Section) -> Segment | None:
        """None where it is not in this image."""
        stripes, count = row.get("stripes"), _number(row, "stripe_count")
        if not isinstance(stripes, list) or count <= 0 or len(stripes) != 2 * count:
            raise Malformed("what describes a logical volume is damaged")
        columns: list[int] = []
        each = -(-length // count)
        for disk, first in zip(stripes[::2], stripes[1::2], strict=True):
            if not isinstance(disk, str) or not isinstance(first, int) or first < 0:
                raise Malformed("what describes a logical volume is damaged")
            if disk not in self._physical:
                return None
            place = self._physical[disk] + first * self._extent
            columns.append(image.place(place, each))
        stripe = length if count == 1 else _number(row, "stripe_size") * _SECTOR
        if length <= 0 or stripe <= 0 or length % (stripe * count if count > 1 else 1):
            raise Malformed("what describes a logical volume is damaged")
        return Segment(start, length, stripe, tuple(columns))


def _sections(section: Section, name: str) -> Iterator[tuple[str, Section]]:
    below = section.get(name)
    for key, one in below.items() if isinstance(below, dict) else ():
        if isinstance(one, dict):
            yield key, one


def _number(section: Section, name: str) -> int:
    value = section.get(name)
    if not isinstance(value, int) or not 0 <= value < 1 << 50:
        raise Malformed("what describes a group of LVM is damaged")
    return value


def _text(section: Section, name: str) -> str:
    value = section.get(name)
    if not isinstance(value, str):
        raise Malformed("what describes a group of LVM is damaged")
    return value
