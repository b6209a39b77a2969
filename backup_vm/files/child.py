# SPDX-License-Identifier: GPL-2.0-or-later
"""The child that parses file systems, and has no right to anything: see sandbox.

Run as a program, with standard input a socket, and as arguments how many seconds of the processor's
time a question has until something is answered, and the folders of modules. What it was started by
opens images, has keys and writes files; it asks that for ranges of images.
"""

import sys

if __name__ == "__main__":
    sys.path[:] = sys.argv[2:]

import json
import os
import signal
from collections.abc import Callable, Iterator
from itertools import islice
from struct import error as struct_error
from typing import Any

from backup_vm.files import messages
from backup_vm.files.readers import partitions
from backup_vm.files.readers.source import Absent, Malformed, Reader, Source, Unsupported

_MORE = 0.1
"""Seconds more for each frame of the answer, so that a folder of millions of names has its time,
and a hostile one that never ends has not.
"""
_SENSELESS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RecursionError,
    TypeError, ValueError, struct_error,
)  # fmt: skip
"""What a reader raises for bytes that nobody thought of: damage, and no fault to be traced."""
Row = list[Any]


class _Gone(Exception):
    """Whoever asked is not there any more."""


class Server:
    """Answers questions about images, one after the other."""

    def __init__(self, descriptor: int, seconds: float) -> None:
        self._descriptor, self._seconds = descriptor, seconds
        self._sources: dict[int, Source] = {}
        self._readers: dict[int, Reader] = {}

    def run(self) -> None:
        """Answer until the socket is closed."""
        while True:
            question = json.loads(self._receive(messages.ASK))
            signal.setitimer(signal.ITIMER_PROF, self._seconds)
            try:
                self._answer(question)
            except (Malformed, Unsupported, Absent) as error:
                self._fail(type(error).__name__, str(error))
            except _SENSELESS as error:
                self._fail("Malformed", f"what is there makes no sense ({type(error).__name__})")

    def _answer(self, question: dict[str, Any]) -> None:
        found = getattr(self, "ask_" + question.pop("ask"))(**question)
        if isinstance(found, bytes):
            self._send(messages.DATA, found)
        else:
            rows = iter(found)
            while together := list(islice(rows, messages.ROWS_TOGETHER)):
                self._send(messages.ROWS, json.dumps(together).encode())
                left = signal.getitimer(signal.ITIMER_PROF)[0]
                signal.setitimer(signal.ITIMER_PROF, min(left + _MORE, self._seconds))
        self._send(messages.END, b"")

    def _fail(self, kind: str, text: str) -> None:
        self._send(messages.FAILED, json.dumps([kind, text]).encode())

    def ask_parts(self, image: int, size: int) -> Iterator[Row]:
        """What is in an image."""
        self._sources[image] = Source(self._fetcher(image), 0, size)
        return (list(part) for part in partitions.parts(self._sources[image]))

    def ask_open(self, image: int, part: Row) -> list[Row]:
        """Open a file system: kind, root, notes."""
        reader = partitions.opened(self._sources[image], partitions.Part(*part))
        self._readers[image] = reader
        return [[reader.kind, reader.root, reader.notes]]

    def ask_faults(self, image: int) -> Iterator[Row]:
        """What is wrong with a file system as a whole, as far as its reader looks."""
        faults = getattr(self._readers[image], "faults", None)
        return ([text] for text in (faults() if faults else ()))

    def ask_close(self, image: int) -> list[Row]:
        """Forget an image."""
        self._sources.pop(image, None)
        self._readers.pop(image, None)
        return []

    def ask_stat(self, image: int, node: int) -> list[Row]:
        """What stat(2) says of a file."""
        return [list(self._readers[image].stat(node))]

    def ask_names(self, image: int, node: int) -> Iterator[Row]:
        """A folder's entries, each with what stat(2) says, or why it cannot be said."""
        reader = self._readers[image]
        for name, number in reader.names(node):
            about: Row | str
            try:
                about = list(reader.stat(number))
            except (Malformed, Unsupported) as error:
                about = str(error)
            yield [_text(name), number, about]

    def ask_look(self, image: int, node: int, name: str) -> Iterator[Row]:
        """One entry of a folder, if there is one."""
        reader, wanted = self._readers[image], name.encode("utf-8", "surrogateescape")
        for found, number in reader.names(node):
            if found == wanted:
                yield [_text(found), number, list(reader.stat(number))]
                return

    def ask_extents(self, image: int, node: int) -> Iterator[Row]:
        """Where a file's contents are."""
        return (list(extent) for extent in self._readers[image].extents(node))

    def ask_contents(self, image: int, node: int, offset: int, length: int) -> bytes:
        """Contents that are in no place."""
        data = self._readers[image].contents(node, offset, min(length, messages.LONGEST_RANGE))
        return data[: messages.LONGEST_RANGE]

    def ask_link(self, image: int, node: int) -> bytes:
        """Where a symbolic link leads."""
        return self._readers[image].link(node)

    def ask_attributes(self, image: int, node: int) -> Iterator[Row]:
        """Extended attributes; values as Latin-1."""
        for name, value in self._readers[image].attributes(node):
            yield [_text(name), value.decode("latin-1")]

    def _fetcher(self, image: int) -> Callable[[int, int], bytes]:
        def fetch(offset: int, length: int) -> bytes:
            parts = []
            while length:
                step = min(length, messages.LONGEST_RANGE)
                self._send(messages.FETCH, messages.RANGE.pack(image, offset, step))
                part = self._receive(messages.BYTES)
                if len(part) != step:
                    raise Malformed("a part of the image cannot be read")
                parts.append(part)
                offset, length = offset + step, length - step
            return parts[0] if len(parts) == 1 else b"".join(parts)

        return fetch

    def _send(self, kind: bytes, data: bytes) -> None:
        frame = memoryview(messages.LENGTH.pack(1 + len(data)) + kind + data)
        while frame:
            frame = frame[os.write(self._descriptor, frame) :]

    def _receive(self, kind: bytes) -> bytes:
        (length,) = messages.LENGTH.unpack(self._exactly(messages.LENGTH.size))
        frame = self._exactly(length)
        if frame[:1] != kind:
            raise _Gone
        return frame[1:]

    def _exactly(self, length: int) -> bytes:
        found = bytearray()
        while len(found) < length:
            part = os.read(self._descriptor, length - len(found))
            if not part:
                raise _Gone
            found += part
        return bytes(found)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def main() -> None:
    """Give up all rights, and answer."""
    import encodings.utf_16_le  # noqa: F401  later nothing can be imported
    import zlib  # noqa: F401

    import zstandard  # noqa: F401

    from backup_vm.files import sandbox

    sandbox.enter()
    try:
        Server(0, float(sys.argv[1])).run()
    except (_Gone, OSError):
        os._exit(0)


if __name__ == "__main__":
    main()
