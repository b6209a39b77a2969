# SPDX-License-Identifier: GPL-2.0-or-later
"""What commands write: standard output, which can be closed, full or of few letters; and files,
whole or not at all.
"""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from backup_vm import failures, stopping
from backup_vm.errors import SparsebakError
from common.descriptors import fill_gaps
from common.durable import sync_directory
from common.existing import is_file
from common.text import take_any_letters

_HANGUP = 1.0
"""Seconds that the signal of a closed terminal has to come; more than the grace after one that has
come.
"""


class ReaderGone(Exception):
    """Whoever read standard output reads no more, as in ``sparsebak list | head -1``."""


def prepare() -> None:
    """Make standard streams safe to use, before any file is opened. Letters that the terminal does
    not have are written out.
    """
    fill_gaps()
    take_any_letters()


def put(text: str, end: str = "\n") -> None:
    """Write text and a newline to standard output. Raises ReaderGone, SparsebakError."""
    if sys.stdout is None:
        raise SparsebakError("standard output is closed", "send it to a file or to a terminal")
    with _failing():
        print(text, end=end)


def put_bytes(data: bytes) -> None:
    """Write data to standard output. Raises ReaderGone, SparsebakError."""
    if sys.stdout is None:
        raise SparsebakError("standard output is closed", "send it to a file, or give -o FILE")
    with _failing():
        sys.stdout.buffer.write(data)


class _Standard:
    """Standard output, as a file to write data to."""

    def write(self, data: bytes) -> int:
        put_bytes(data)
        return len(data)


def standard_output() -> IO[bytes]:
    """Standard output to write data to that is no text; refuse a terminal. Raises SparsebakError,
    as its ``write`` does, and that ReaderGone.
    """
    if sys.stdout is not None and sys.stdout.isatty():
        raise SparsebakError("this is no text for a terminal", "send it to a file or a pipe")
    return cast("IO[bytes]", _Standard())


def flush() -> None:
    """Have all written that was put. Raises ReaderGone, SparsebakError."""
    if sys.stdout is not None:
        with _failing():
            sys.stdout.flush()


def abandon() -> None:
    """Let what was put and is not written yet go nowhere, for its reader takes nothing."""
    if sys.stdout is not None:
        _give_up(sys.stdout)


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.EIO:
            # A terminal that is closed fails first and sends its SIGHUP then (Linux,
            # drivers/tty/tty_io.c, __tty_hangup): that is what ends the command, if it comes.
            stopping.sleep(_HANGUP)
        _give_up(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise ReaderGone from None
        reason = error.strerror if isinstance(error, OSError) else error
        raise SparsebakError(f"standard output: {reason}") from None


def _give_up(stream: Any) -> None:
    """What is still buffered cannot be written; Python would try once more at its end, and change
    the exit code.
    """
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


@contextmanager
def _forgiving(stream: Any) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError):
        _give_up(stream)


def complain(line: str) -> None:
    """Write a line to standard error. If that cannot be written either, only the exit code
    tells.
    """
    if sys.stderr is not None:
        with _forgiving(sys.stderr):
            print(line, file=sys.stderr, flush=True)


@contextmanager
def replacing(target: Path, force: bool = True, public: bool = False) -> Iterator[Path]:
    """An empty file beside ``target`` to write to, which becomes it at the end; removed if anything
    fails.

    ``target`` is named as the user did: a link is followed. Raises SparsebakError where there is
    something that is not a regular file, a device such as /dev/null, say, which must not be
    replaced; without ``force`` where there is anything; and in the folder of an archive, of which
    a slip of the hand must not cost a file. ``public``: others may read it, as the umask says.
    """
    import tempfile  # here, for few commands write a file

    from backup_vm.archive.opening import archive_around

    named, target = target, Path(os.path.realpath(target))
    with contextlib.suppress(FileNotFoundError):
        # as it was named: a pipe that is called /dev/stdout is under no other name
        if not stat.S_ISREG(os.stat(named).st_mode):
            raise SparsebakError(f"{named} is not a regular file", "choose another name")
        if not force:
            raise SparsebakError(f"{target} exists", "choose another name, or remove it first")
    around = archive_around(target)
    if around is not None:
        folder, label = around
        raise SparsebakError(
            f"{target} is in the archive {folder} ({label})", "choose a name outside of it"
        )
    try:  # a name of its own: whatever else is called .part is somebody's
        fd, name = tempfile.mkstemp(".part", f"{target.name}.", target.parent)
    except OSError as error:
        raise failures.cannot_write(target, error) from None
    beside = Path(name)
    try:
        with open(fd, "wb"):
            if public:
                os.fchmod(fd, 0o666 & ~_umask())
        yield beside
        os.replace(beside, target)
        with contextlib.suppress(PermissionError):  # a folder that may only be written to
            sync_directory(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        # What is read says its name.
        if isinstance(error, OSError) and error.strerror and error.filename is None:
            raise failures.cannot_write(target, error) from None
        raise


@contextmanager
def whole_file(target: Path, force: bool = True, public: bool = False) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of ``target`` when it is whole and on disk; see
    replacing.
    """
    with replacing(target, force, public) as beside, open(beside, "wb") as out:
        yield out
        out.flush()
        os.fsync(out.fileno())


_PAGE = b"<!doctype html>"


def write_page(target: Path, text: str) -> None:
    """Write a page of HTML in place of the one that was there. Nothing else is replaced by it."""
    begins = b""
    if is_file(target):
        with suppress(OSError), open(target, "rb") as file:  # one that cannot be read is replaced
            begins = file.read(len(_PAGE))
    if begins and begins.lower() != _PAGE:
        raise SparsebakError(
            f"{target} exists and is no page", "choose another name, or remove it first"
        )
    with whole_file(target, public=True) as out:
        out.write(text.encode())


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def ask(question: str) -> None:
    """Print a question, to be answered on the same line, where it is seen: the other stream may go
    to a file.
    """
    stream = sys.stderr if sys.stderr is not None and sys.stderr.isatty() else sys.stdout
    with _forgiving(stream):
        print(question, end="", file=stream, flush=True)


class Forgiving:
    """A stream to a terminal that may be gone: what cannot be shown is not shown."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """See io.TextIOBase."""
        with _forgiving(self._stream):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """See io.TextIOBase."""
        with _forgiving(self._stream):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
