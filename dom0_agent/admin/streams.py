# SPDX-License-Identifier: GPL-2.0-or-later
"""The standard streams of the administrator's commands, which can be closed, full, or of few
letters.
"""

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any, Final, TextIO, cast

from common.override import override
from common.text import take_any_letters

OUTPUT: Final = "standard output"
"""As an OSError of it names it."""


class _Output(io.FileIO):
    """Standard output, which is named where it cannot be written."""

    @override
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            closed = error.errno == errno.EBADF
            reason = "closed" if closed else error.strerror
            raise OSError(error.errno, reason, OUTPUT) from None


class _Errors(io.FileIO):
    """Standard error. Where it cannot be written only the exit code tells: nothing that is done
    depends on it, and Python does not end with a code of its own.
    """

    @override
    def write(self, data: Any) -> int:
        with suppress(OSError):
            return super().write(data)
        return len(data)


def prepare() -> None:
    """Make the streams of this process safe to use, before any file is opened."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # closed: the next file that is opened would take its number
            # What is written to the second fails, as it must: it may be a recovery key.
            null = os.open(os.devnull, os.O_WRONLY if fd == 2 else os.O_RDONLY)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
            setattr(sys, name, os.fdopen(fd, "w" if fd else "r", closefd=False))
    sys.stdout = _text(sys.stdout, _Output(1, "wb", closefd=False), False)
    sys.stderr = _text(sys.stderr, _Errors(2, "wb", closefd=False), True)
    take_any_letters()


def _text(before: TextIO, raw: io.FileIO, lines: bool) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        cast("io.BufferedWriter", io.BufferedWriter(raw)),
        encoding=before.encoding,
        line_buffering=lines or raw.isatty(),
    )


def print_no_more() -> None:
    """Standard output cannot be written, and what it still holds would be tried again at the end of
    Python.
    """
    with suppress(OSError):  # no descriptor, where it is not a process
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
