# SPDX-License-Identifier: GPL-2.0-or-later
"""Text that people read: made safe for a terminal, and the names that sessions have."""

import io
import re
import sys
import time as _time
from collections import Counter
from collections.abc import Iterable, Mapping

_SESSION = re.compile(r"\d{8}-\d{6}", re.ASCII)


def printable(text: str) -> str:
    """The text with all that a terminal might obey (escapes, marks that turn the direction of
    writing) written out.
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def take_any_letters() -> None:
    """Let no letter fail that the locale has not: what is written to the standard streams has it
    written out, and what is read another one in its place, which is no yes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")


def reason(error: Exception) -> str:
    """What an error says; of the system's the file and why, and no number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def session_name(time: int) -> str:
    """Name of the session taken at ``time`` (Unix seconds): UTC, ``20261123-061500``."""
    return _time.strftime("%Y%m%d-%H%M%S", _time.gmtime(time))


def session_names(sessions: Iterable[tuple[int, bytes]]) -> dict[bytes, str]:
    """What each session of a volume is called, by its id, given times (Unix seconds) and ids: by
    its time; one of several of the same second by the beginning of its id, too.
    """
    found = {id: time for time, id in sessions}
    often = Counter(found.values())
    return {
        id: session_name(time) + (f"-{id[:4].hex()}" if often[time] > 1 else "")
        for id, time in found.items()
    }


def sessions_meant(names: Mapping[bytes, str], wanted: str) -> set[bytes]:
    """Ids of those sessions whose name begins so, or whose id that is, in hexadecimal; ``names`` as
    session_names gives them.
    """
    return {id for id, name in names.items() if name.startswith(wanted) or id.hex() == wanted}


def is_session_name(text: str) -> bool:
    """Whether ``text`` has the form that session_name gives."""
    return _SESSION.fullmatch(text) is not None


def parse_seconds(text: str) -> int:
    """A whole number of seconds, in digits alone; raise ValueError for anything else, and for more
    than three years of them.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 8):
        raise ValueError(f"{text[:80]!r} is not a number of seconds, such as 3600")
    return int(text)
