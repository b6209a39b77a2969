# SPDX-License-Identifier: GPL-2.0-or-later
"""What the child that parses file systems answers, of which nothing is believed before it is
checked: each function here takes what came, and returns what it says or raises FileSystemError.
"""

import json
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from backup_vm.errors import SparsebakError

_NUMBER = 1 << 128
_SIZE = 1 << 63
_TEXT, _KIND = 300, 30
_LONGEST_LINK, _LONGEST_VALUE = 4096, 64 << 10
_MOST_EXTENTS = 1 << 25
NOWHERE = (1 << 64) - 1


class FileSystemError(SparsebakError):
    """A file system is damaged, or has something that is not read; the archive is sound."""


class NoFileSystemError(FileSystemError):
    """There is no file system that can be read."""


class Stat(NamedTuple):
    """What stat(2) says of a file; times are nanoseconds since 1970.

    The child has a class of its own for it (readers.source): nothing that parses is imported here.
    """

    mode: int
    links: int
    uid: int
    gid: int
    size: int
    atime: int
    mtime: int
    ctime: int
    major: int
    minor: int


class Entry(NamedTuple):
    """An entry of a folder; of a file that cannot be read, why not in place of ``stat``."""

    name: bytes
    node: int
    stat: Stat | None
    trouble: str = ""


class Part(NamedTuple):
    """A partition of an image, or all of it as number 0; or a logical volume, which has a name and
    is no range of the image (``start`` is 0).
    """

    number: int
    start: int
    size: int
    kind: str
    readable: bool
    name: str = ""


class Extents:
    """Where a file's contents are: offset, length, and place in the image or NOWHERE."""

    def __init__(self) -> None:
        self._numbers = array("Q")

    def add(self, offset: int, length: int, place: int) -> None:
        """One more, at the end."""
        self._numbers.extend((offset, length, place))

    def within(self, low: int, high: int) -> Iterator[tuple[int, int, int]]:
        """Those that have bytes from ``low`` on, before ``high``."""
        at = bisect_right(range(len(self)), low, key=lambda one: self._numbers[3 * one])
        for one in range(max(at - 1, 0), len(self)):
            offset, length, place = self._numbers[3 * one : 3 * one + 3]
            if offset >= high:
                return
            if offset + length > low:
                yield offset, length, place

    def __len__(self) -> int:
        return len(self._numbers) // 3

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        numbers = iter(self._numbers)
        return zip(numbers, numbers, numbers, strict=True)


def senseless() -> FileSystemError:
    """The error for an answer that no honest child gives."""
    return FileSystemError("the reader of files gave an answer that cannot be")


def must(true: bool) -> None:
    """Raise it unless this is true."""
    if not true:
        raise senseless()


def _encoded(text: str) -> bytes:
    """A name's bytes, as the child has to say them."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise senseless() from None


def json_list(data: bytes) -> list[Any]:
    """The rows in a frame."""
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError):
        raise senseless() from None
    if type(rows) is not list:
        raise senseless()
    return rows


def failure(data: bytes) -> FileSystemError:
    """What the child says it could not do."""
    for kind, text in _shaped([json_list(data)], str, str):
        if kind == "Absent":
            return NoFileSystemError("there is no file system that is read here")
        return FileSystemError(text[:_TEXT])
    raise senseless()


def _shaped(rows: Any, *types: type) -> Iterator[Any]:
    """The rows, each of which has these types and no more."""
    for row in rows:
        must(type(row) is list and len(row) == len(types))
        must(all(type(one) is kind for one, kind in zip(row, types, strict=True)))
        yield row


def parts(rows: list[Any], size: int) -> list[Part]:
    """Partitions within an image of ``size`` bytes."""
    found = []
    for number, start, length, kind, readable, name in _shaped(rows, int, int, int, str, bool, str):
        must(0 <= number < 1000 and start >= 0 and 0 < length <= size - start)
        must(len(name) <= _TEXT and name.isascii() and (start == 0 or not name))
        found.append(Part(number, start, length, kind[:_KIND], readable, name))
    must(0 < len(found) <= 1000)
    return found


def opened(rows: list[Any]) -> tuple[str, int, list[str]]:
    """The kind of a file system, its root, and what must be known of it."""
    for kind, root, notes in _shaped(rows, str, int, list):
        must(0 <= root < _NUMBER and len(notes) < 10)
        must(all(type(note) is str for note in notes))
        return kind[:_KIND], root, [note[:_TEXT] for note in notes]
    raise senseless()


def faults(rows: list[Any]) -> list[str]:
    """What is wrong with a file system."""
    found = [text[:_TEXT] for (text,) in _shaped(rows, str)]
    must(len(found) < 10)
    return found


def stat(row: Any) -> Stat:
    """What stat(2) says of a file, out of one row."""
    must(type(row) is list and len(row) == len(Stat._fields))
    must(all(type(one) is int for one in row))
    found = Stat(*row)
    must(0 <= found.mode < 1 << 16 and 0 <= found.links < 1 << 32)
    must(0 <= found.uid < 1 << 32 and 0 <= found.gid < 1 << 32 and 0 <= found.size < _SIZE)
    must(0 <= found.major < 1 << 32 and 0 <= found.minor < 1 << 32)
    must(all(-_SIZE * 2 <= one < _SIZE * 4 for one in (found.atime, found.mtime, found.ctime)))
    return found


def entries(rows: Iterable[Any]) -> Iterator[Entry]:
    """Entries of a folder, each with a name that a file can have."""
    for row in rows:
        must(type(row) is list and len(row) == 3)
        text, node, about = row
        must(type(text) is str and type(node) is int and 0 <= node < _NUMBER)
        name = _encoded(text)
        if not 0 < len(name) <= 255 or b"/" in name or b"\0" in name or name in (b".", b".."):
            raise FileSystemError("a folder has a name that no file can have")
        if type(about) is str:
            yield Entry(name, node, None, about[:_TEXT])
        else:
            yield Entry(name, node, stat(about))


def extents(rows: Iterable[Any], size: int, end: int) -> Extents:
    """Extents of a file of ``size`` bytes in an image of ``end`` bytes, in order."""
    found, reached = Extents(), 0
    for row in rows:
        must(type(row) is list and len(row) == 3)
        offset, length, place = row
        must(type(offset) is int and type(length) is int)
        must(reached <= offset and 0 < length <= size - offset)
        if place is not None:
            must(type(place) is int and 0 <= place <= end - length)
        found.add(offset, length, NOWHERE if place is None else place)
        reached = offset + length
        must(len(found) <= _MOST_EXTENTS)
    return found


def contents(data: bytes, length: int) -> bytes:
    """So many bytes of a file."""
    if len(data) != length:
        raise FileSystemError("a file is shorter than it says")
    return data


def link(data: bytes) -> bytes:
    """Where a symbolic link leads."""
    must(len(data) <= _LONGEST_LINK)
    if not data or b"\0" in data:
        raise FileSystemError("a link leads nowhere")
    return data


def attributes(rows: list[Any]) -> dict[str, bytes]:
    """Extended attributes by name."""
    found = {}
    for name, value in _shaped(rows, str, str):
        raw = value.encode("latin-1", "replace")
        must(0 < len(_encoded(name)) <= 300 and "\0" not in name)
        must(len(raw) <= _LONGEST_VALUE)
        found[name] = raw
        must(len(found) <= 100_000)
    return found
