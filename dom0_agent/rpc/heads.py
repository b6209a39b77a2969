"""The beginning of a connection to the resident agent: what qrexec says of a call before its
caller's first byte.
"""

import re
from dataclasses import dataclass

from dom0_agent.rpc.dispatch import SERVICES

LONGEST = 1024
"""Bytes that it has, at most."""
_HEAD = re.compile(
    rb"sparsebak\.([A-Za-z]{1,16})(?:\+([A-Za-z0-9_.+-]{0,200}))? ([A-Za-z0-9_.-]{1,63})"
    rb" (name|keyword) ([A-Za-z0-9_.-]{1,63})"
)


@dataclass(frozen=True)
class Call:
    """What the beginning of a connection says."""

    service: str
    caller: str
    environ: dict[str, str]


def parse_head(untrusted_head: bytes) -> Call | None:
    """What the beginning of a connection says; None if it is none."""
    head = _HEAD.fullmatch(untrusted_head)
    if head is None or head[1].decode("ascii") not in SERVICES:
        return None
    service, argument, source, kind, target = (
        part.decode("ascii") for part in (head[1], head[2] or b"", *head.groups()[2:])
    )
    environ = {
        "QREXEC_REMOTE_DOMAIN": source,
        "QREXEC_SERVICE_ARGUMENT": argument,
        "QREXEC_REQUESTED_TARGET_TYPE": kind,
        "QREXEC_REQUESTED_TARGET" + ("" if kind == "name" else "_KEYWORD"): target,
    }
    return Call(service, source, environ)
