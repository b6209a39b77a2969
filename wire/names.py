"""Names of qubes, volumes, archives and sessions: allow-lists, because every one of them ends up in a path or a policy.

qrexec turns any other character of a service argument into ``_``, so that two names could collide: only names that
need no changing are accepted.
"""

import re
import time as _time

NAME_LIMIT = 63
"""Longest name in bytes. Frames hold names in 64 bytes, padded with NUL."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)
_SESSION = re.compile(r"\d{8}-\d{6}", re.ASCII)


class BadName(ValueError):
    """A name outside the allow-list."""


def parse_name(untrusted_name: str, what: str = "name") -> str:
    """Return the name of a qube, a volume or an archive unchanged, or raise BadName."""
    if not _NAME.fullmatch(untrusted_name):
        raise BadName(
            f"{what} {untrusted_name[:80]!r}: use 1 to 63 of A-Z a-z 0-9 _ . - starting with a letter or digit"
        )
    return untrusted_name


def parse_volume_name(untrusted_name: str) -> tuple[str, str]:
    """Split ``qube/volume`` into its two validated names, or raise BadName."""
    untrusted_qube, slash, untrusted_volume = untrusted_name.partition("/")
    if not slash:
        raise BadName(f"{untrusted_name[:80]!r}: a volume is written QUBE/VOLUME")
    return parse_name(untrusted_qube, "qube"), parse_name(untrusted_volume, "volume")


def printable(text: str) -> str:
    """The text with all that a terminal might obey (escapes, marks that turn the direction of writing) written out."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def session_name(time: int) -> str:
    """Name of the session taken at ``time`` (Unix seconds): UTC, ``20261123-061500``."""
    return _time.strftime("%Y%m%d-%H%M%S", _time.gmtime(time))


def is_session_name(text: str) -> bool:
    """Whether ``text`` has the form that session_name gives."""
    return _SESSION.fullmatch(text) is not None
