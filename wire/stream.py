# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading exact lengths and writing frames, over any pair of binary streams."""

from typing import Protocol

from wire.messages import HEADER, Message

SEND_BUFFER = 1 << 20
"""Bytes on their way that a local socket is asked to hold. The kernel gives what it may, with its
own settings twice what a socket has otherwise (socket(7), SO_SNDBUF): either side waits for the
other half as often."""


class Reader(Protocol):
    """A binary stream to read from; may return fewer bytes than asked for."""

    def read(self, size: int, /) -> bytes | memoryview:
        """Up to ``size`` bytes; none at the end. A view is of bytes that nobody changes."""


class Writer(Protocol):
    """A buffered binary stream to write to."""

    def write(self, data: bytes, /) -> object:
        """Take all of ``data``."""

    def writelines(self, parts: list[bytes], /) -> object:
        """Take all parts, one after another, as if they were joined."""

    def flush(self) -> None:
        """Pass on what was taken."""


class CutShort(EOFError):
    """The other side ended its stream before it was complete."""


def read_exactly(stream: Reader, size: int) -> bytes:
    """Read ``size`` bytes or raise CutShort. The caller has checked ``size`` against a limit."""
    return bytes(read_view(stream, size))


def read_view(stream: Reader, size: int) -> bytes | memoryview:
    """As read_exactly, without a copy where the stream has the bytes in one piece."""
    data = stream.read(size)
    if len(data) == size:
        return data
    parts = [data]
    missing = size - len(data)
    while missing:
        data = stream.read(missing)
        if not data:
            raise CutShort(f"stream ended {missing} bytes early")
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


def write_frame(stream: Writer, kind: int, payload: bytes) -> None:
    """Write one frame."""
    stream.write(HEADER.pack(kind, len(payload)) + payload)


def send(stream: Writer, message: Message) -> None:
    """Write one of the structures of wire.messages as a frame of its own kind."""
    write_frame(stream, message.KIND, message.build())
