# SPDX-License-Identifier: GPL-2.0-or-later
"""Who holds a lease, as its file says, and whether that process is gone.

What it says is written by anybody who can write to the store: it is bounded, and only ever shown or
compared.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from common.text import printable

LONGEST_HOST = 64
"""Letters of a host's name that are shown."""
given_back: set[str] = set()
"""Tokens of leases that this process has had: one may still be there, when the store could not be
reached at the end.
"""


class Holder(NamedTuple):
    """Who holds a lease. ``space``: the process id's name space; ``started``: the process's start,
    in ticks since boot.
    """

    machine: str = ""
    boot: str = ""
    space: str = ""
    process: int = 0
    started: int = 0
    host: str = ""
    command: str = ""
    since: int = 0
    token: str = ""
    released: bool = False

    @classmethod
    def this(cls, command: str) -> "Holder":
        """This process."""
        machine = _text("/etc/machine-id")
        if machine:  # it is nobody's business: only whether it is the same one
            machine = hashlib.blake2b(machine.encode(), digest_size=16, person=b"lease").hexdigest()
        space = ""
        with suppress(OSError):
            space = os.readlink("/proc/self/ns/pid")
        process = os.getpid()
        return cls(
            machine,
            _text("/proc/sys/kernel/random/boot_id"),
            space,
            process,
            started(process) or 0,
            os.uname().nodename,
            command,
            int(time.time()),
            os.urandom(16).hex(),
        )

    def dump(self) -> bytes:
        """As a file holds it."""
        return json.dumps(self._asdict()).encode() + b"\n"

    @classmethod
    def load(cls, untrusted_raw: bytes) -> "Holder":
        """Read it; where it is malformed, a holder of whom nothing is known."""
        try:
            untrusted_fields = json.loads(untrusted_raw)
            known = cls()._asdict()
            fields = {key: untrusted_fields[key] for key in known}
            if any(type(value) is not type(known[key]) for key, value in fields.items()):
                return cls()
            return cls(**fields)
        except (ValueError, KeyError, TypeError, RecursionError):
            return cls()

    def ours(self) -> bool:
        """Whether it is this process."""
        here = Holder.this("")
        return bool(self.boot) and (self.boot, self.space, self.process, self.started) == (
            here.boot, here.space, here.process, here.started,
        )  # fmt: skip

    def gone(self) -> bool:
        """Whether it is certain that it does not run any more."""
        if self.released or (self.token and self.token in given_back):
            return True
        here = Holder.this("")
        if self.machine != here.machine or not self.boot:
            return False
        if self.boot == here.boot:  # the same kernel, also where the machine has no id
            return bool(self.space) and self.space == here.space and self._ended()
        return bool(self.machine) and self.host == here.host

    def _ended(self) -> bool:
        """Whether no process of this kernel and name space is the one that it names."""
        return started(self.process) != self.started

    def __str__(self) -> str:
        if not self.process:
            return "holder unknown"
        try:
            since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        except (ValueError, OverflowError, OSError):
            since = "?"
        return f"{printable(self.host[:LONGEST_HOST])}, process {self.process}, since {since}"


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, ValueError):
        return ""


def started(process: int) -> int | None:
    """When a process started, in ticks since boot; None when there is none of that number."""
    if not 0 < process < 1 << 32:
        return None
    try:
        status = Path(f"/proc/{process}/stat").read_bytes()
        return int(status.rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
