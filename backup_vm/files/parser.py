# SPDX-License-Identifier: GPL-2.0-or-later
"""The child that parses file systems, as the command sees it: it is started, asked, given the
ranges of images that it asks for, and ended. What it answers goes through ``answers``.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from backup_vm import stopping
from backup_vm.errors import SparsebakError
from backup_vm.files import answers, messages
from backup_vm.files.answers import (
    Entry,
    Extents,
    FileSystemError,
    Part,
    Stat,
    failure,
    json_list,
    must,
    senseless,
)
from backup_vm.files.listing import Listing

SECONDS = 180.0
"""For a frame, without what the archive takes to read. The child ends itself before."""
_WORKING = 60.0
"""Seconds of the processor's time for a question, until something is answered."""
_MOST_ROWS = 1 << 22
_MOST_STARTS, _MEANWHILE = 16, 3600.0
"""Children that are started in so many seconds: what one hostile file costs is the processor's time
of one question, and a thousand of them must not cost a thousand times as much.
"""
Read = Callable[[int, int], bytes]


class Parser:
    """The child, which is started by the first question, and again by the next one after a
    question was its end. For one thread.
    """

    def __init__(self, seconds: float = _WORKING) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._socket = socket.socket()  # in the place of one to the child
        self._ended = False
        self._unread: SparsebakError | None = None
        """Why a range could not be read, of the question that is being answered."""
        self._images: dict[int, tuple[Read, int]] = {}
        self._next = 0
        self._steps: dict[int, dict[str, dict[str, Any]]] = {}
        """What opened each image: it is asked again of another child."""
        self._known: set[int] = set()
        """Images that this child has opened."""
        self._starts: deque[float] = deque()

    def __enter__(self) -> "Parser":
        return self

    def __exit__(self, *what: object) -> None:
        self.close()

    def begin(self) -> None:
        """Start the child now: it takes as long to be ready as a key does to be derived."""
        if self._process is None:
            self._begin()

    def close(self) -> None:
        """End the child. There is no other after it."""
        self._ended = True
        self._end()

    def abort(self) -> None:
        """Let whoever waits for the child wait no longer, and nobody start another: from any
        thread, close is for its own.
        """
        self._ended = True
        if (process := self._process) is not None:
            process.kill()

    def _end(self) -> None:
        self._socket.close()
        self._known.clear()
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
        del self._images[image]
        self._steps.pop(image, None)
        if image in self._known:
            self._known.discard(image)
            self._rows("close", image)

    def parts(self, image: int) -> list[Part]:
        """The partitions of an image."""
        size = self._images[image][1]
        found = answers.parts(self._rows("parts", image, size=size), size)
        self._steps[image] = {"parts": {"size": size}}
        return found

    def open(self, image: int, part: Part) -> tuple[str, int, list[str]]:
        """Open a file system: its kind, its root, and what must be known of it."""
        found = answers.opened(self._rows("open", image, part=list(part)))
        self._steps[image]["open"] = {"part": list(part)}
        return found

    def faults(self, image: int) -> list[str]:
        """What is wrong with a file system as a whole, beside what its files tell."""
        return answers.faults(self._rows("faults", image))

    def stat(self, image: int, node: int) -> Stat:
        """What stat(2) says."""
        for row in self._rows("stat", image, node=node):
            return answers.stat(row)
        raise senseless()

    def names(self, image: int, node: int) -> Listing:
        """A folder's entries, by name; each name is one, and can be one of Linux."""
        with closing(self._counted("names", image, node=node)) as rows:
            return Listing(answers.entries(rows))

    def look(self, image: int, node: int, name: bytes) -> Entry | None:
        """One entry of a folder, if it is there."""
        text = name.decode("utf-8", "surrogateescape")
        for entry in answers.entries(self._rows("look", image, node=node, name=text)):
            must(entry.name == name)
            return entry
        return None

    def extents(self, image: int, node: int, size: int) -> Extents:
        """Where the contents of a file of this size are; what no extent covers is a hole."""
        # closed at once where a row is none, and not with the error that says so
        with closing(self._stream("extents", image, node=node)) as rows:
            return answers.extents(rows, size, self._images[image][1])

    def contents(self, image: int, node: int, offset: int, length: int) -> bytes:
        """Contents that are in no place: so many bytes."""
        data = self._data("contents", image, node=node, offset=offset, length=length)
        return answers.contents(data, length)

    def link(self, image: int, node: int) -> bytes:
        """Where a symbolic link leads."""
        return answers.link(self._data("link", image, node=node))

    def attributes(self, image: int, node: int) -> dict[str, bytes]:
        """Extended attributes."""
        return answers.attributes(self._rows("attributes", image, node=node))

    def _rows(self, what: str, image: int, **more: Any) -> list[Any]:
        return list(self._counted(what, image, **more))

    def _counted(self, what: str, image: int, **more: Any) -> Generator[Any, None, None]:
        with closing(self._stream(what, image, **more)) as rows:
            for count, row in enumerate(rows):
                must(count < _MOST_ROWS)
                yield row

    def _stream(self, what: str, image: int, **more: Any) -> Generator[Any, None, None]:
        with closing(self._answer(what, image, more)) as frames:
            for kind, data in frames:
                must(kind == messages.ROWS)
                yield from json_list(data)

    def _data(self, what: str, image: int, **more: Any) -> bytes:
        found = list(self._answer(what, image, more))
        must(len(found) == 1 and found[0][0] == messages.DATA)
        return found[0][1]

    def _answer(
        self, what: str, image: int, more: dict[str, Any]
    ) -> Generator[tuple[bytes, bytes], None, None]:
        """Frames of the answer. Where it is not read to its end, that is the end of the child."""
        if self._process is None:
            self._begin()
        if image not in self._known:
            self._open_again(image)
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
                raise failure(data)
        finally:
            if not whole:
                self._end()

    def _begin(self) -> None:
        """Start a child, unless too many have ended: then there is no other."""
        now = time.monotonic()
        while self._starts and self._starts[0] < now - _MEANWHILE:
            self._starts.popleft()
        if self._ended or len(self._starts) >= _MOST_STARTS:
            raise FileSystemError(
                "the reader of files has ended"
                if self._ended
                else "the reader of files ended too often: there are files that are made to end it"
            )
        self._starts.append(now)
        self._start()

    def _open_again(self, image: int) -> None:
        """Let this child open an image as the one before did: numbers of files stay what they
        were, for the image is the same.
        """
        self._known.add(image)
        try:
            for step, words in self._steps.get(image, {}).items():
                for _ in self._answer(step, image, words):
                    pass
        except BaseException:
            self._known.discard(image)
            raise

    def _fetched(self, data: bytes) -> bytes:
        must(len(data) == messages.RANGE.size)
        image, offset, length = messages.RANGE.unpack(data)
        must(image in self._images and length <= messages.LONGEST_RANGE)
        read, size = self._images[image]
        must(offset + length <= size)
        try:
            return read(offset, length)
        except SparsebakError as error:  # damage in the archive is no end of the child
            self._unread = self._unread or error
            return b""

    def _start(self) -> None:
        ours, its = socket.socketpair()
        folders = [str(Path(__file__).parent.parent.parent), *filter(os.path.isabs, sys.path)]
        program = str(Path(__file__).with_name("child.py"))
        with its:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", program, str(self._seconds), *folders],
                    stdin=its.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env={},
                    start_new_session=True,  # Ctrl-C is for the command
                )
            except OSError as error:
                ours.close()
                raise SparsebakError(
                    f"cannot start the reader of files: {error.strerror}"
                ) from None
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
        must(0 < length <= messages.LONGEST_FRAME)
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
        self._end()
        if code in (-signal.SIGPROF, -signal.SIGXCPU) or code is None:
            return FileSystemError("it takes too long to read: it may be made to do so")
        return FileSystemError(f"the reader of files ended with {code}")
