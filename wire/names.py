# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of qubes, volumes, archives and sessions: allow-lists, because every one of them ends up in
a path or a policy.

qrexec turns any other character of a service argument into ``_``, so that two names could collide:
only names that need no changing are accepted.
"""

import re
from collections.abc import Container
from itertools import count
from typing import NamedTuple

from common.text import is_session_name

NAME_LIMIT = 63
"""Longest name in bytes. Frames hold names in 64 bytes, padded with NUL."""

OLDER = "older"
"""Last part of the argument of a Restore of a session that is not the newest one dom0 knows."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)


_IDENTITY = re.compile(rf"(?:_[1-9][0-9]{{0,8}}\.)?{_NAME.pattern}", re.ASCII)


class BadName(ValueError):
    """A name outside the allow-list."""


def parse_name(untrusted_name: str, what: str = "name") -> str:
    """Return the name of a qube, a volume or an archive unchanged, or raise BadName."""
    if not _NAME.fullmatch(untrusted_name):
        raise BadName(
            f"{what} {untrusted_name[:80]!r}: use 1 to 63 of A-Z a-z 0-9 _ . - starting with a"
            " letter or digit"
        )
    return untrusted_name


def parse_identity(untrusted_identity: str) -> str:
    """Return the identity of a qube unchanged, or raise BadName: see new_identity."""
    if len(untrusted_identity) > NAME_LIMIT or not _IDENTITY.fullmatch(untrusted_identity):
        raise BadName(f"identity {untrusted_identity[:80]!r}: none that a qube can have")
    return untrusted_identity


def set_aside(name: str, taken: Container[str]) -> str:
    """A name for what has to give ``name`` up: ``work.old``, ``work.old2`` and so on."""
    endings = (f".old{n if n > 1 else ''}" for n in count(1))
    found = (name[: NAME_LIMIT - len(ending)] + ending for ending in endings)
    return next(one for one in found if one not in taken)


def new_identity(name: str, taken: Container[str]) -> str:
    """The identity of a qube: its name, or where that is another's ``_2.work``, ``_3.work`` and so
    on, which is no name.
    """
    found = (name if n == 1 else f"_{n}.{name}"[:NAME_LIMIT] for n in count(1))
    return next(one for one in found if one not in taken)


def parse_volume_name(untrusted_name: str) -> tuple[str, str]:
    """Split ``qube/volume`` into its two validated names, or raise BadName."""
    untrusted_qube, slash, untrusted_volume = untrusted_name.partition("/")
    if not slash:
        raise BadName(f"{untrusted_name[:80]!r}: a volume is written QUBE/VOLUME")
    return parse_name(untrusted_qube, "qube"), parse_name(untrusted_volume, "volume")


class Restoring(NamedTuple):
    """What a Restore call asks for: the volume that is overwritten, and the session, by name, that
    it then has.

    ``older``: also if dom0 does not know that session as the volume's newest.
    """

    qube: str
    volume: str
    session: str
    older: bool = False

    @property
    def name(self) -> str:
        """The volume, for people: ``qube/volume``."""
        return f"{self.qube}/{self.volume}"

    def argument(self) -> str:
        """As a service argument: ``QUBE+VOLUME+SESSION`` or ``QUBE+VOLUME+SESSION+older``; see
        parse_restoring.
        """
        return "+".join([*self[:3], *([OLDER] if self.older else [])])


def parse_restoring(untrusted_argument: str) -> Restoring:
    """Undo Restoring.argument, or raise BadName. No name has a plus sign, so that there is one way
    to read it.
    """
    untrusted_parts = untrusted_argument.split("+")
    older = untrusted_parts[3:] == [OLDER]
    if len(untrusted_parts) != 3 + older or not is_session_name(untrusted_parts[2]):
        raise BadName(f"{untrusted_argument[:200]!r}: a restore is of QUBE+VOLUME+SESSION[+older]")
    qube, volume, session = untrusted_parts[:3]
    return Restoring(parse_name(qube, "qube"), parse_name(volume, "volume"), session, older)
