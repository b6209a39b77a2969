# SPDX-License-Identifier: GPL-2.0-or-later
"""The child that parses file systems, as the command sees it: questions, and answers of which
nothing is believed before it is checked.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from backup_vm import stopping
from backup_vm.errors import SparsebakError
from backup_vm.files import messages

SECONDS = 180.0
"""For an answer, without what the archive takes to read. The child ends itself before."""
_NUMBER = 1 << 128
_SIZE = 1 << 63
_TEXT = 300
_LONGEST_LINK, _LONGEST_VALUE = 4096, 64 << 10
_MOST_EXTENTS = 1 << 25
_MOST_ROWS = 1 << 22
NOWHERE = (1 << 64) - 1
Read = Callable[[int, int], bytes]


class FileSystemError(SparsebakError):
    """A file system is damaged, or has something that is not read; the archive is sound."""


class NoFileSystemError(FileSystemError):
    """There is no file system that can be read."""


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
    major: int
    minor: int


class Entry(NamedTuple):
    """An entry of a folder; of a file that cannot be read, why not in place of ``stat``."""

    name: bytes
    node: int
    stat: Stat | None
    trouble: str = ""


class Part(NamedTuple):
    """A partition of an image, or all of it as number 0."""

    number: int
    start: int
    size: int
    kind: str
    readable: bool


class Extents:
    """Where a file's contents are: offset, length, and place in the image or NOWHERE."""

    def __init__(self) -> None:
        self._numbers = array("Q")

    def add(self, offset: int, length: int, place: int) -> None:
        """One more, at the end."""
        self._numbers.extend((offset, length, place))

    def __len__(self) -> int:
        return len(self._numbers) // 3

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        numbers = iter(self._numbers)
        return zip(numbers, numbers, numbers, strict=True)


class Parser:
    """The child, which is started by the first question. For one thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket = socket.socket()  # in the place of one to the child
        self._ended = False
        self._unread: SparsebakError | None = None
        """Why a range could not be read, of the question that is being answered."""
        self._images: dict[int, tuple[Read, int]] = {}
        self._next = 0

    def __enter__(self) -> "Parser":
        return self

    def __exit__(self, *what: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child. There is no other after it."""
        self._ended = True
        self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def add(self, read: Read, size: int) -> int:
        """An image that the child may ask for ranges of; returns its number."""
        self._next += 1
        self._images[self._next] = (read, size)
        return self._next

    def forget(self, image: int) -> None:
        """Let the child forget an image."""
        self._rows("close", image)
        del self._images[image]

    def parts(self, image: int) -> list[Part]:
        """The partitions of an image."""
        size = self._images[image][1]
        found = []
        for number, start, length, kind, readable in _shaped(
            self._rows("parts", image, size=size), int, int, int, str, bool
        ):
            _must(0 <= number < 1000 and start >= 0 and 0 < length <= size - start)
            found.append(Part(number, start, length, kind[:20], readable))
        _must(0 < len(found) <= 1000)
        return found

    def open(self, image: int, part: Part) -> tuple[str, int, list[str]]:
        """Open a file system: its kind, its root, and what must be known of it."""
        rows = self._rows("open", image, part=list(part))
        for kind, root, notes in _shaped(rows, str, int, list):
            _must(0 <= root < _NUMBER and len(notes) < 10)
            _must(all(type(note) is str for note in notes))
            return kind[:20], root, [note[:_TEXT] for note in notes]
        raise _senseless()

    def stat(self, image: int, node: int) -> Stat:
        """What stat(2) says."""
        for row in self._rows("stat", image, node=node):
            return _stat(row)
        raise _senseless()

    def names(self, image: int, node: int) -> list[Entry]:
        """A folder's entries, by name; each name is one, and can be one of Linux."""
        found: dict[bytes, Entry] = {}
        for entry in _entries(self._rows("names", image, node=node)):
            if entry.name in found:
                raise FileSystemError("a folder has a name twice")
            found[entry.name] = entry
        return [found[name] for name in sorted(found)]

    def look(self, image: int, node: int, name: bytes) -> Entry | None:
        """One entry of a folder, if it is there."""
        text = name.decode("utf-8", "surrogateescape")
        for entry in _entries(self._rows("look", image, node=node, name=text)):
            _must(entry.name == name)
            return entry
        return None

    def extents(self, image: int, node: int, size: int) -> Extents:
        """Where the contents of a file of this size are; what no extent covers is a hole."""
        found, reached, end = Extents(), 0, self._images[image][1]
        for row in self._stream("extents", image, node=node):
            _must(type(row) is list and len(row) == 3)
            offset, length, place = row
            _must(type(offset) is int and type(length) is int)
            _must(reached <= offset and 0 < length <= size - offset)
            if place is not None:
                _must(type(place) is int and 0 <= place <= end - length)
            found.add(offset, length, NOWHERE if place is None else place)
            reached = offset + length
            _must(len(found) <= _MOST_EXTENTS)
        return found

    def contents(self, image: int, node: int, offset: int, length: int) -> bytes:
        """Contents that are in no place: so many bytes."""
        data = self._data("contents", image, node=node, offset=offset, length=length)
        if len(data) != length:
            raise FileSystemError("a file is shorter than it says")
        return data

    def link(self, image: int, node: int) -> bytes:
        """Where a symbolic link leads."""
        data = self._data("link", image, node=node)
        _must(len(data) <= _LONGEST_LINK)
        if not data or b"\0" in data:
            raise FileSystemError("a link leads nowhere")
        return data

    def attributes(self, image: int, node: int) -> dict[str, bytes]:
        """Extended attributes."""
        found = {}
        for name, value in _shaped(self._rows("attributes", image, node=node), str, str):
            raw = value.encode("latin-1", "replace")
            _must(0 < len(_encoded(name)) <= 300 and "\0" not in name)
            _must(len(raw) <= _LONGEST_VALUE)
            found[name] = raw
            _must(len(found) <= 100_000)
        return found

    def _rows(self, what: str, image: int, **more: Any) -> list[Any]:
        rows: list[Any] = []
        for row in self._stream(what, image, **more):
            rows.append(row)
            _must(len(rows) <= _MOST_ROWS)
        return rows

    def _stream(self, what: str, image: int, **more: Any) -> Iterator[Any]:
        for kind, data in self._answer(what, image, more):
            _must(kind == messages.ROWS)
            yield from _json_list(data)

    def _data(self, what: str, image: int, **more: Any) -> bytes:
        found = list(self._answer(what, image, more))
        _must(len(found) == 1 and found[0][0] == messages.DATA)
        return found[0][1]

    def _answer(self, what: str, image: int, more: dict[str, Any]) -> Iterator[tuple[bytes, bytes]]:
        """Frames of the answer. Where it is not read to its end, that is the end of the child."""
        if self._process is None:
            self._start()
        whole, self._unread = False, None
        try:
            self._send(messages.ASK, json.dumps({"ask": what, "image": image, **more}).encode())
            while True:
                kind, data = self._receive()
                if kind == messages.FETCH:
                    self._send(messages.BYTES, self._fetched(data))
                elif kind in (messages.END, messages.FAILED):
                    whole = True
                    break
                else:
                    yield kind, data
            if self._unread is not None:
                raise self._unread
            if kind == messages.FAILED:
                raise _failure(data)
        finally:
            if not whole:
                self.close()

    def _fetched(self, data: bytes) -> bytes:
        _must(len(data) == messages.RANGE.size)
        image, offset, length = messages.RANGE.unpack(data)
        _must(image in self._images and length <= messages.LONGEST_RANGE)
        read, size = self._images[image]
        _must(offset + length <= size)
        try:
            return read(offset, length)
        except SparsebakError as error:  # damage in the archive is no end of the child
            self._unread = self._unread or error
            return b""

    def _start(self) -> None:
        if self._ended:
            raise FileSystemError("the reader of files has ended")
        ours, its = socket.socketpair()
        folders = [str(Path(__file__).parent.parent.parent), *filter(os.path.isabs, sys.path)]
        program = str(Path(__file__).with_name("child.py"))
        with its:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", program, *folders],
                    stdin=its.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env={},
                    start_new_session=True,  # Ctrl-C is for the command
                )
            except OSError as error:
                ours.close()
                raise SparsebakError(f"cannot start the reader of files: {error}") from None
        self._socket = ours

    def _send(self, kind: bytes, data: bytes) -> None:
        try:
            self._socket.settimeout(SECONDS)
            self._socket.sendall(messages.LENGTH.pack(1 + len(data)) + kind + data)
        except OSError:
            raise self._gone() from None

    def _receive(self) -> tuple[bytes, bytes]:
        until = time.monotonic() + SECONDS
        (length,) = messages.LENGTH.unpack(self._exactly(messages.LENGTH.size, until))
        _must(0 < length <= messages.LONGEST_FRAME)
        frame = self._exactly(length, until)
        return frame[:1], frame[1:]

    def _exactly(self, length: int, until: float) -> bytes:
        found = bytearray()
        while len(found) < length:
            stopping.check()
            if time.monotonic() > until:
                raise self._gone()
            if not select.select([self._socket], [], [], stopping.STEP)[0]:
                continue
            with suppress(ConnectionError):
                part = self._socket.recv(min(length - len(found), 1 << 18))
                if part:
                    found += part
                    continue
            raise self._gone()
        return bytes(found)

    def _gone(self) -> FileSystemError:
        """Why the child does not answer."""
        code = None
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                code = self._process.wait(0.5)
        self.close()
        if code in (-signal.SIGPROF, -signal.SIGXCPU) or code is None:
            return FileSystemError("it takes too long to read: it may be made to do so")
        return FileSystemError(f"the reader of files ended with {code}")


def _senseless() -> FileSystemError:
    return FileSystemError("the reader of files gave an answer that cannot be")


def _must(true: bool) -> None:
    if not true:
        raise _senseless()


def _encoded(text: str) -> bytes:
    """A name's bytes, as the child has to say them."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise _senseless() from None


def _json_list(data: bytes) -> list[Any]:
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError):
        raise _senseless() from None
    if type(rows) is not list:
        raise _senseless()
    return rows


def _failure(data: bytes) -> FileSystemError:
    for kind, text in _shaped([_json_list(data)], str, str):
        if kind == "Absent":
            return NoFileSystemError("there is no file system that is read here")
        return FileSystemError(text[:_TEXT])
    raise _senseless()


def _shaped(rows: Any, *types: type) -> Iterator[Any]:
    """The rows, each of which has these types and no more."""
    for row in rows:
        _must(type(row) is list and len(row) == len(types))
        _must(all(type(one) is kind for one, kind in zip(row, types, strict=True)))
        yield row


def _stat(row: Any) -> Stat:
    _must(type(row) is list and len(row) == len(Stat._fields))
    _must(all(type(one) is int for one in row))
    found = Stat(*row)
    _must(0 <= found.mode < 1 << 16 and 0 <= found.links < 1 << 32)
    _must(0 <= found.uid < 1 << 32 and 0 <= found.gid < 1 << 32 and 0 <= found.size < _SIZE)
    _must(0 <= found.major < 1 << 32 and 0 <= found.minor < 1 << 32)
    _must(all(-_SIZE <= one < _SIZE * 4 for one in (found.atime, found.mtime, found.ctime)))
    return found


def _entries(rows: list[Any]) -> Iterator[Entry]:
    for row in rows:
        _must(type(row) is list and len(row) == 3)
        text, node, about = row
        _must(type(text) is str and type(node) is int and 0 <= node < _NUMBER)
        name = _encoded(text)
        if not 0 < len(name) <= 255 or b"/" in name or b"\0" in name or name in (b".", b".."):
            raise FileSystemError("a folder has a name that no file can have")
        if type(about) is str:
            yield Entry(name, node, None, about[:_TEXT])
        else:
            yield Entry(name, node, _stat(about))
