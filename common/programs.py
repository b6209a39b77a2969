# SPDX-License-Identifier: GPL-2.0-or-later
"""Other programs, of whose output no more is kept than there is room for, whatever they write."""

import os
import selectors
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import IO, NamedTuple

KEPT = 64 << 10
"""Bytes of what a program complains of that are kept: the last ones, which say why it ended."""
_LAST = 1.0
"""Seconds to wait for the rest, once the program has ended: another may hold its stream open."""


class LastWords(threading.Thread):
    """Reads what a program writes to a stream, to its end, and keeps the last KEPT bytes. The
    stream itself may be closed at once.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._fd, self._kept = os.dup(stream.fileno()), b""
        self.start()

    def run(self) -> None:
        """Read."""
        with open(self._fd, "rb", buffering=0) as stream:
            while part := stream.read(KEPT):
                self._kept = (self._kept + part)[-KEPT:]

    def text(self) -> str:
        """What was kept, of a program that has ended."""
        self.join(_LAST)
        return self._kept.decode(errors="replace")


class TooMuch(Exception):
    """A program printed more than was wanted."""


class Done(NamedTuple):
    """How a program ended, and what it wrote."""

    code: int
    out: bytes
    said: str


def ask(
    command: Sequence[str],
    seconds: float,
    most: int = KEPT,
    environment: Mapping[str, str] | None = None,
) -> Done:
    """Run a program that is asked nothing, and return what it printed.

    Raises OSError where it cannot be started, TooMuch when it prints more than ``most`` bytes,
    subprocess.TimeoutExpired; it is killed then.
    """
    with subprocess.Popen(
        command,
        # ours may be a caller's data, and whoever asks is answered "no"
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        if process.stdout is None or process.stderr is None:
            raise AssertionError("both are pipes")
        try:
            words, until = LastWords(process.stderr), time.monotonic() + seconds
            out = _printed(process.stdout, until, most)
            code = process.wait(max(until - time.monotonic(), 0.0))
        except TimeoutError:
            process.kill()
            raise subprocess.TimeoutExpired(command, seconds) from None
        except BaseException:
            process.kill()
            raise
    return Done(code, out, words.text())


def _printed(stream: IO[bytes], until: float, most: int) -> bytes:
    # Not in one read, which would wait for whoever else holds the stream open.
    found = bytearray()
    with closing(selectors.DefaultSelector()) as selector:
        selector.register(stream, selectors.EVENT_READ)
        while selector.select(max(until - time.monotonic(), 0.0)):
            part = os.read(stream.fileno(), KEPT)
            if not part:
                return bytes(found)
            found += part
            if len(found) > most:
                raise TooMuch
    raise TimeoutError
