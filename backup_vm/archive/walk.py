# SPDX-License-Identifier: GPL-2.0-or-later
"""Walks over a file field by field, as its structure is declared: where each field is, and what it
says.

Memory does not grow with the file. Of rows only the first and the last are looked at, unless every
one is wanted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import construct
from construct import Construct, Container

from wire.declared import Time, bare, declaration
from wire.layout import Structure

Read = Callable[[int, int], bytes]
"""Bytes from an offset on, at most so many; fewer at the file's end. Raises OSError."""

LONGEST = 512
"""Bytes of a field's contents, at most, that are read."""
_BLOCK = 1 << 15
"""Rows read together."""


@dataclass(frozen=True)
class Field:
    """A field of a file, or rows that are left out.

    ``name``: dotted, rows by number: ``index[3].offset``. ``value``: a number, text or bytes; None
    of what is longer than LONGEST, and of rows. ``number``: whether it is one, little-endian.
    ``rows``: how many are left out here.
    """

    name: str
    at: int
    size: int
    value: int | str | bytes | None
    meaning: str = ""
    number: bool = False
    time: bool = False
    rows: int = 0
    problem: str = ""


class Ends(Exception):
    """A file is malformed from here on; the text says where and why."""


def walk(structure: type[Structure], read: Read, size: int, every: bool = False) -> Iterator[Field]:
    """The fields of a file of ``size`` bytes, in order; Ends where the rest cannot be what is
    declared.

    ``every``: all rows. A field that is there and has a value that it cannot have is one with a
    problem.
    """
    walker = _Walker(read, size, every)
    yield from walker.struct(declaration(structure), Container(), "")
    if walker.at != walker.end:
        raise Ends(f"byte {walker.at}: {walker.end - walker.at} bytes that belong to nothing")


class _Rows:
    """Rows of bytes that have been walked over, for what must count them."""

    def __init__(self, read: Read, at: int, size: int, count: int) -> None:
        self._read, self._at, self._size, self._count = read, at, size, count

    def __iter__(self) -> Iterator[bytes]:
        for first in range(0, self._count, _BLOCK):
            length = min(_BLOCK, self._count - first) * self._size
            block = self._read(self._at + first * self._size, length)
            for at in range(0, len(block), self._size):
                yield block[at : at + self._size]


class _Walker:
    """``at``: where the next field is; ``end``: where the last one ends that is not counted from
    the file's end.
    """

    def __init__(self, read: Read, size: int, every: bool) -> None:
        self._read, self._every = read, every
        self.at, self.end = 0, size

    def struct(self, struct: Construct, context: Container, prefix: str) -> Iterator[Field]:
        last: list[Field] = []
        for field in struct.subcons:
            kind, name = bare(field), prefix + field.name
            if isinstance(kind, construct.Pointer):
                here, self.at = self.at, self.end + kind.offset
                if self.at < here:
                    raise Ends(f"byte {here}: too short for {name}")
                last = list(self.one(kind.subcon, name, field, context))
                self.at, self.end = here, self.end + kind.offset
                continue
            try:
                yield from self.one(kind, name, field, context)
            except Ends:
                yield from last
                raise
        yield from last

    def one(
        self, kind: Construct, name: str, field: Construct, context: Container
    ) -> Iterator[Field]:
        """A field, or those of a structure or of rows; the context knows them then."""
        if isinstance(kind, construct.Struct):
            context[field.name] = inner = Container(_=context)
            yield from self.struct(kind, inner, f"{name}.")
        elif isinstance(kind, construct.Array):
            count = construct.core.evaluate(kind.count, context)
            yield from self._array(kind.subcon, count, name, field, context)
        elif isinstance(kind, construct.GreedyRange):
            yield from self._greedy(kind.subcon, name, field, context)
        else:
            yield self._value(kind, name, field, context)

    def _array(
        self, row: Construct, count: int, name: str, field: Construct, context: Container
    ) -> Iterator[Field]:
        size = _size(row)
        if size is None:
            yield from self._some(row, iter(range(count)), name, context)
            return
        start, there = self.at, min(count, (self.end - self.at) // size)
        context[field.name] = _Rows(self._read, start, size, there)
        for number in range(there) if self._every else (0, there - 1)[:there]:
            if not self._every and number > 1:
                yield _left_out(name, number, start + size, start + number * size)
            self.at = start + number * size
            yield from self._row(row, number, name, context)
        self.at = start + there * size
        if there < count:
            raise Ends(f"byte {self.at}: the file ends after {there} of {count} {name}")

    def _greedy(
        self, row: Construct, name: str, field: Construct, context: Container
    ) -> Iterator[Field]:
        size = _size(row)
        if size is not None:
            yield from self._array(row, (self.end - self.at) // size, name, field, context)
            return
        numbers = iter(lambda: self.at < self.end, False)
        yield from self._some(row, (n for n, _ in enumerate(numbers)), name, context)

    def _row(self, row: Construct, number: int, name: str, context: Container) -> Iterator[Field]:
        yield from self.one(bare(row), f"{name}[{number}]", row, Container({**context}))

    def _some(
        self, row: Construct, numbers: Iterator[int], name: str, context: Container
    ) -> Iterator[Field]:
        """Rows of unlike sizes: all of them, or the first and the last, and one that ends the file.
        The size of each is known when it has been walked over."""
        held: list[Field] = []
        second = number = 0
        ends: Ends | None = None
        for number in numbers:
            held = []
            try:
                for field in self._row(row, number, name, context):
                    if self._every or number == 0:
                        yield field
                    else:
                        held.append(field)
            except Ends as error:
                ends = error
                break
            second = second or self.at
        if held and number > 1:
            yield _left_out(name, number, second, held[0].at)
        yield from held
        if ends is not None:
            raise ends

    def _value(self, kind: Construct, name: str, field: Construct, context: Container) -> Field:
        if isinstance(kind, construct.Bytes):
            size = construct.core.evaluate(kind.length, context)
        else:
            size = kind.sizeof()
        at, left = self.at, self.end - self.at
        if size < 0:
            raise Ends(f"byte {at}: {name} cannot have {size} bytes")
        if size > left:
            raise Ends(f"byte {at}: {name} has {size} bytes, and {left} are left")
        self.at += size
        raw = self._read(at, size) if size <= LONGEST else None
        if raw is not None and len(raw) != size:
            raise Ends(f"byte {at}: {name} cannot be read")
        number = isinstance(kind, construct.FormatField) or kind is Time
        value, problem = _parsed(kind, raw, number)
        context[field.name] = value
        meaning = " ".join((field.docs or "").split())
        return Field(name, at, size, value, meaning, number, kind is Time, problem=problem)


def _parsed(kind: Construct, raw: bytes | None, number: bool) -> tuple[Any, str]:
    if raw is None:
        return None, ""
    if isinstance(kind, construct.Bytes):
        return raw, ""
    try:
        return kind.parse(raw), ""
    except (construct.ConstructError, UnicodeError):
        pass
    if isinstance(kind, construct.Const):
        return raw, f"must be {shown(kind.build(None))}"
    if number:
        return int.from_bytes(raw, "little"), "later than the year 9999"
    return raw, "not ASCII"


def _size(row: Construct) -> int | None:
    """Bytes of a row; None where they differ."""
    try:
        return int(row.sizeof())
    except construct.SizeofError:
        return None


def _left_out(name: str, last: int, at: int, to: int) -> Field:
    """What is not shown between the first row and the last."""
    return Field(f"{name}[1..{last - 1}]", at, to - at, None, rows=last - 1)


def shown(raw: bytes) -> str:
    """Bytes for people: letters in quotes, all others in hexadecimal."""
    letters = raw.rstrip(bytes(range(9)))
    if len(letters) > 2 and letters.isascii() and letters.decode().isprintable():
        return f'"{letters.decode()}" {raw[len(letters) :].hex(" ")}'.rstrip()
    return raw.hex()
