# SPDX-License-Identifier: GPL-2.0-or-later
"""What every reader is made of: bounded reading of an image, and what it says of files."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

BLOCK = 64 << 10
"""Bytes fetched at once: what describes files is close together, and chunks are larger."""
_BLOCKS = 512
LONGEST_LINK = 4096
"""Bytes of a symbolic link's target (PATH_MAX)."""
LONGEST_VALUE = 64 << 10
"""Bytes of an extended attribute's value (XATTR_SIZE_MAX)."""
LARGEST_FILE = (1 << 63) - 1
Pieces = Callable[[int, int], Iterator[tuple[int, int]]]
"""Of an offset and a length the places where that is, in order, and how many bytes are there."""


class Malformed(Exception):
    """What the image says of its files cannot be."""


class Unsupported(Exception):
    """The file system, or a file in it, has a feature that is not read here."""


class Absent(Exception):
    """There is no file system of this kind here."""


class Stat(NamedTuple):
    """What stat(2) says of a file; times are nanoseconds since 1970."""

    mode: int
    links: int
    uid: int
    gid: int
    size: int
    atime: int
    mtime: int
    ctime: int
    major: int = 0
    minor: int = 0


class Name(NamedTuple):
    """An entry of a folder. ``node`` names the file in calls of its reader."""

    name: bytes
    node: int


class Extent(NamedTuple):
    """Contents of a file that are somewhere: what no extent covers is a hole.

    ``place`` is where in the image they are, as they are; None where ``contents`` gives them.
    """

    offset: int
    length: int
    place: int | None


class Reader(Protocol):
    """A file system that is open. Every method raises Malformed, Unsupported."""

    kind: str
    notes: list[str]
    """What somebody who trusts the files must know."""
    root: int

    def stat(self, node: int) -> Stat:
        """What stat(2) says."""

    def names(self, node: int) -> Iterator[Name]:
        """A folder's entries, without ``.`` and ``..``."""

    def extents(self, node: int) -> Iterator[Extent]:
        """Where a regular file's contents are, in order."""

    def contents(self, node: int, offset: int, length: int) -> bytes:
        """Contents within one extent that has no place."""

    def link(self, node: int) -> bytes:
        """A symbolic link's target."""

    def attributes(self, node: int) -> Iterator[tuple[bytes, bytes]]:
        """Extended attributes, as listxattr(2) and getxattr(2) give them."""


class Source:
    """Bytes of a part of an image. Nothing outside of it is read."""

    def __init__(self, fetch: Callable[[int, int], bytes], start: int, size: int) -> None:
        self._fetch, self.start, self.size = fetch, start, size
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes. Raises Malformed where the image has none."""
        end = offset + length
        if offset < 0 or length < 0 or end > self.size:
            raise Malformed(f"something is said to be at byte {offset}, beyond the image's end")
        number, within = divmod(offset, BLOCK)
        if within + length <= BLOCK:
            return self._block(number)[within : within + length]
        parts = []
        while offset < end:
            number, within = divmod(offset, BLOCK)
            part = self._block(number)[within : within + end - offset]
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def _block(self, number: int) -> bytes:
        block = self._kept.get(number)
        if block is not None:
            self._kept.move_to_end(number)
            return block
        at = number * BLOCK
        block = self._fetch(self.start + at, min(BLOCK, self.size - at))
        self._kept[number] = block
        if len(self._kept) > _BLOCKS:
            self._kept.popitem(last=False)
        return block

    def part(self, start: int, size: int) -> "Source":
        """A part of it, as a source of its own. Raises Malformed where it reaches beyond."""
        if start < 0 or size < 0 or start + size > self.size:
            raise Malformed("a partition reaches beyond the image's end")
        return Source(self._fetch, self.start + start, size)

    def scattered(self, pieces: "Pieces", size: int) -> "Source":
        """What is in pieces of it, as a source of its own, whose places are its own as well."""

        def fetch(offset: int, length: int) -> bytes:
            found = list(pieces(offset, length))
            return b"".join(self._fetch(self.place(at, step), step) for at, step in found)

        return Source(fetch, 0, size)

    def place(self, offset: int, length: int) -> int:
        """Where in the image these bytes are. Raises Malformed."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Malformed(f"contents are said to be at byte {offset}, beyond the image's end")
        return self.start + offset


def within(extents: Iterator[Extent], size: int) -> Iterator[Extent]:
    """Extents, none beyond the file's end. Raises Malformed unless each follows the one before."""
    reached = 0
    for extent in extents:
        if extent.offset < reached or extent.length <= 0:
            raise Malformed("pieces of a file overlap")
        reached = extent.offset + extent.length
        if extent.offset < size:
            yield extent._replace(length=min(extent.length, size - extent.offset))
