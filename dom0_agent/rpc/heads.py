# SPDX-License-Identifier: GPL-2.0-or-later
"""What a call asks for, as qrexec says it before the caller's first byte: in the environment of a
service file, or at the beginning of a connection to the resident agent.

Either way it says the same five words, and what they mean is read from them once, in the process
that answers the call.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from wire.names import BadName, Restoring, parse_name, parse_restoring
from wire.status import Code, Refused

SERVICES = (
    "List",
    "Enroll",
    "Monitor",
    "Snapshot",
    "Extract",
    "Commit",
    "Abort",
    "Verify",
    "Restore",
)

ABSENT = "@default"
"""Target of a call about a qube that does not exist: qrexec knows it by this name."""
_KEYWORDS = {"adminvm": None, "default": ABSENT}
LONGEST = 8192
"""Bytes that the beginning of a connection has, at most: a caller may send an argument of 4,000."""
_HEAD = re.compile(
    # The argument as long as it comes: who sent one that is none is told so, and so is the log.
    rb"sparsebak\.([A-Za-z]{1,16})(?:\+([A-Za-z0-9_.+-]*))? ([A-Za-z0-9_.-]{1,63})"
    rb" (name|keyword) ([A-Za-z0-9_.-]{1,63})"
)


class Words(NamedTuple):
    """A call as qrexec says it. ``kind``: whether ``target`` is a "name" or a "keyword". Only the
    service is known to be one.
    """

    service: str
    caller: str
    untrusted_argument: str
    kind: str
    target: str


class Asked(NamedTuple):
    """Who asks for what. ``target``: the qube it is about (None: dom0 itself, ABSENT: none);
    ``volume``: a volume's name, or nothing; ``restoring``: what the argument of a Restore says.
    """

    service: str
    caller: str
    target: str | None
    volume: str
    restoring: Restoring | None = None

    def __str__(self) -> str:
        argument = self.restoring.argument() if self.restoring else self.volume
        return f"sparsebak.{self.service}+{argument} from {self.caller} for {self.target or 'dom0'}"


def from_environment(service: str, environ: Mapping[str, str]) -> Words:
    """The words that qrexec puts into the environment of a service."""
    kind = environ.get("QREXEC_REQUESTED_TARGET_TYPE", "")
    suffix = "" if kind == "name" else "_KEYWORD"
    return Words(
        service,
        environ.get("QREXEC_REMOTE_DOMAIN", ""),
        environ.get("QREXEC_SERVICE_ARGUMENT", ""),
        kind,
        environ.get(f"QREXEC_REQUESTED_TARGET{suffix}", ""),
    )


def parse_head(untrusted_head: bytes) -> Words | None:
    """The words that the beginning of a connection says; None if it is none."""
    head = _HEAD.fullmatch(untrusted_head)
    if head is None or head[1].decode("ascii") not in SERVICES:
        return None
    service, argument, caller, kind, target = (
        part.decode("ascii") for part in head.groups(default=b"")
    )
    return Words(service, caller, argument, kind, target)


def understand(words: Words) -> Asked:
    """What the words mean; Refused when one of them is not what it has to be."""
    try:
        caller = parse_name(words.caller, "caller")
        volume, restoring = words.untrusted_argument, None
        if words.service == "Restore":
            restoring = parse_restoring(words.untrusted_argument)
            volume = restoring.volume
        elif volume:
            parse_name(volume, "volume")
        target = None
        if words.kind == "name":
            if words.target != "dom0":
                target = parse_name(words.target, "qube")
        elif words.kind == "keyword" and words.target in _KEYWORDS:
            target = _KEYWORDS[words.target]
        else:  # @dispvm, say, where somebody's own rule sends it here
            raise BadName("the target is neither a qube nor dom0 nor one that does not exist")
    except BadName as error:
        raise Refused(Code.BAD_REQUEST, f"what qrexec says of the call: {error}") from None
    return Asked(words.service, caller, target, volume, restoring)
