# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of one session: paths in it, folders, contents."""

import stat
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import NamedTuple, Protocol

from backup_vm.errors import DamagedError, SparsebakError
from backup_vm.files.answers import NOWHERE, Extents, FileSystemError, NoFileSystemError, Part, Stat
from backup_vm.files.listing import Listing
from backup_vm.files.parser import Parser
from backup_vm.jobs.reading import THREADS
from common.pipeline import in_order
from common.text import printable

PIECE = 1 << 20
"""Bytes of contents read at once."""
_HOPS = 40
_FOR_BOOTING = "vfat"
DEEPEST = 500
"""Folders within each other: each is open while what is in it is copied."""


class Found(NamedTuple):
    """A file that a path leads to."""

    path: bytes
    node: int
    stat: Stat


class Bytes(Protocol):
    """An image: Bytes, or a file."""

    size: int
    chunk_size: int

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset`` on, fewer at the image's end. Raises
        DamagedError.
        """


class MissingError(SparsebakError):
    """There is no such file."""


def shown(name: bytes) -> str:
    """A name or path as text that no terminal obeys."""
    return printable(name.decode("utf-8", "surrogateescape"))


class SessionFiles:
    """One file system in the image of one session. Every method raises FileSystemError, and
    DamagedError where the archive is damaged.
    """

    def __init__(
        self,
        parser: Parser,
        image: Bytes,
        name: str,
        number: int | str | None = None,
        watch: bool = False,
    ) -> None:
        self._parser, self._image, self.name = parser, image, name
        self.fetched: set[int] | None = set() if watch else None
        """Which chunks the parser asked for, where that is watched."""
        self.damaged = False
        """Whether the archive is damaged where a folder is that was to be walked."""
        self.by_default = True
        """Whether it is the file system that is read where no partition is named."""
        if not image.size:
            raise NoFileSystemError(f"{name}: there is no file system in it: it has no bytes")
        self._chunk = image.chunk_size
        self._number = parser.add(self._read, image.size)
        try:
            self.part = self._choose(number)
            self.kind, self.root, self.notes = parser.open(self._number, self.part)
        except FileSystemError as error:
            raise type(error)(f"{name}: {error}", error.hint) from None

    def _read(self, offset: int, length: int) -> bytes:
        if self.fetched is not None:
            self.fetched.update(
                range(offset // self._chunk, (offset + length - 1) // self._chunk + 1)
            )
        return self._image.read(offset, length)

    def _choose(self, number: int | str | None) -> Part:
        found = self._parser.parts(self._number)
        default = _default(found)
        if number is not None:
            chosen = [part for part in found if number in (part.number, part.name or part.number)]
            if not chosen:
                raise FileSystemError(f"there is no partition {number}", _listed(found))
            self.by_default = chosen[0] == default
            return chosen[0]
        if default is not None:
            return default
        if any(part.readable for part in found):
            raise FileSystemError(
                "there are several file systems", f"give --partition N: {_listed(found)}"
            )
        raise NoFileSystemError(
            "there is no file system in it that is read here",
            f"there is: {_listed(found)}" if any(p.kind for p in found) else "see: sparsebak mount",
        )

    def close(self) -> None:
        """Let the parser forget it."""
        with suppress(FileSystemError):
            self._parser.forget(self._number)

    def faults(self) -> list[str]:
        """What is wrong with the file system as a whole, as far as its reader looks."""
        return self._parser.faults(self._number)

    def stat(self, node: int) -> Stat:
        """What stat(2) says."""
        return self._parser.stat(self._number, node)

    def names(self, node: int) -> Listing:
        """A folder's entries, by name."""
        return self._parser.names(self._number, node)

    def link(self, node: int) -> bytes:
        """Where a symbolic link leads."""
        return self._parser.link(self._number, node)

    def attributes(self, node: int) -> dict[str, bytes]:
        """Extended attributes."""
        return self._parser.attributes(self._number, node)

    def extents(self, found: Found) -> Extents:
        """Where a regular file's contents are."""
        return self._parser.extents(self._number, found.node, found.stat.size)

    def find(self, path: bytes, follow: bool = True) -> Found:
        """The file that a path leads to, symbolic links within the image followed; the last one
        only if ``follow``, or if there is a slash behind it. Raises MissingError.
        """
        as_folder = path.endswith(b"/")
        left = [part for part in path.split(b"/") if part not in (b"", b".")][::-1]
        trail = [Found(b"/", self.root, self.stat(self.root))]
        hops = 0
        while left:
            part, here = left.pop(), trail[-1]
            if part == b"..":
                trail = trail[:-1] or trail
                continue
            if not stat.S_ISDIR(here.stat.mode):
                raise MissingError(f"{self.name}: {shown(here.path)} is not a folder")
            entry = self._parser.look(self._number, here.node, part)
            where = joined(here.path, part)
            if entry is None:
                raise MissingError(f"{self.name} has no {shown(where)}")
            if entry.stat is None:  # it is there
                raise FileSystemError(f"{self.name}: {shown(where)}: {entry.trouble}")
            if stat.S_ISLNK(entry.stat.mode) and (left or follow or as_folder):
                hops += 1
                if hops > _HOPS:
                    raise MissingError(f"{self.name}: {shown(path)}: too many symbolic links")
                target = self.link(entry.node)
                left += [one for one in target.split(b"/") if one not in (b"", b".")][::-1]
                if target.startswith(b"/"):
                    del trail[1:]
                continue
            trail.append(Found(where, entry.node, entry.stat))
        if as_folder and not stat.S_ISDIR(trail[-1].stat.mode):
            raise MissingError(f"{self.name}: {shown(trail[-1].path)} is not a folder")
        return trail[-1]

    def walk(
        self, top: Found, trouble: Callable[[bytes, str], None], most: int = DEEPEST
    ) -> Iterator[tuple[int, Found]]:
        """All that is in a folder, a folder before what is in it, with how deep it is. What cannot
        be read is reported.
        """
        seen = {top.node}
        stack = [(1, self._children(top, trouble))]
        while stack:
            depth, children = stack[-1]
            found = next(children, None)
            if found is None:
                stack.pop()
                continue
            yield depth, found
            if not stat.S_ISDIR(found.stat.mode) or depth >= most:
                continue
            if found.node in seen:
                trouble(found.path, "this folder is in several places")
            elif depth >= DEEPEST:
                trouble(found.path, "folders within folders are too deep here")
            else:
                seen.add(found.node)
                stack.append((depth + 1, self._children(found, trouble)))

    def _children(self, top: Found, trouble: Callable[[bytes, str], None]) -> Iterator[Found]:
        try:
            entries = self.names(top.node)
        except (FileSystemError, DamagedError) as error:
            self.damaged = self.damaged or isinstance(error, DamagedError)
            trouble(top.path, str(error))
            return
        yield from found_in(top, entries, trouble)

    def contents(self, found: Found, extents: Extents | None = None) -> Iterator[tuple[int, bytes]]:
        """A regular file's contents: offsets and bytes, in order, without holes. A few MiB are
        read ahead. ``extents``: where they are, if that was asked for already.
        """

        def read(piece: tuple[int, int, int, bytes]) -> tuple[int, bytes]:
            offset, length, place, data = piece
            return offset, data or self._image.read(place, length)

        pieces = self._pieces(found, extents)
        yield from in_order(read, pieces, THREADS, 2 * THREADS + 2)

    def _pieces(
        self, found: Found, extents: Extents | None
    ) -> Iterator[tuple[int, int, int, bytes]]:
        for offset, length, place in self.extents(found) if extents is None else extents:
            done = 0
            while done < length:
                if place == NOWHERE:
                    step = min(length - done, PIECE)
                    yield offset + done, step, 0, self.unplaced(found.node, offset + done, step)
                else:
                    # to the end of a chunk: none is opened twice
                    step = min(length - done, PIECE - (place + done) % self._chunk)
                    yield offset + done, step, place + done, b""
                done += step

    def unplaced(self, node: int, offset: int, length: int) -> bytes:
        """Contents that the parser unpacks."""
        return self._parser.contents(self._number, node, offset, length)

    def read(self, place: int, length: int) -> bytes:
        """Bytes of the image."""
        return self._image.read(place, length)


def joined(folder: bytes, name: bytes) -> bytes:
    """The path of a folder's entry."""
    return folder + name if folder.endswith(b"/") else folder + b"/" + name


def _default(parts: list[Part]) -> Part | None:
    """The only file system that can be read, or the only one beside FAT."""
    readable = [part for part in parts if part.readable]
    # a disk that boots by UEFI has FAT for that beside what is meant
    besides = [part for part in readable if part.kind != _FOR_BOOTING]
    return next((chosen[0] for chosen in (readable, besides) if len(chosen) == 1), None)


def _listed(parts: list[Part]) -> str:
    numbered = [part for part in parts if part.number]
    return ", ".join(
        f"{printable(part.name) or part.number}: {printable(part.kind) or 'unknown'}"
        for part in numbered
    ) or ", ".join(printable(part.kind) or "unknown" for part in parts)


def found_in(
    folder: Found, entries: Listing, trouble: Callable[[bytes, str], None]
) -> Iterator[Found]:
    """What is in a folder, by name; ``trouble`` is told of each entry that cannot be read. Closes
    the listing.
    """
    with closing(entries):
        for entry in entries:
            path = joined(folder.path, entry.name)
            if entry.stat is None:
                trouble(path, entry.trouble)
            else:
                yield Found(path, entry.node, entry.stat)
