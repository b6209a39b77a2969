# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of leases in an archive's folder ``locks``: what they are called, and which of them are
held.

What a lease says is written by anybody who can write to the store: it is bounded, and only ever
shown or compared.
"""

import os
import re
from contextlib import suppress
from functools import partial
from typing import Protocol

from backup_vm import failures
from backup_vm.archive.holder import Holder
from backup_vm.errors import ForbiddenError, NoRoomError

FOLDER = "locks"
# So long that a machine that sleeps for a few minutes, or a network that is down for ten, does not
# end a run; no longer, for one that was cut off on another machine keeps others away until then.
STALE = 1800.0
"""Seconds without a renewal, by the store's clock, after which a lease is free."""
_BEGINNING = 120.0
"""Seconds after which a lease that says nothing is free: that of a run which died while it made it,
or whose contents a power cut took. The one has not yet looked for others, and would find them; the
other, should it still run, finds out at its next renewal. So this must be longer than RENEWAL,
whatever else is known, of a machine's last start for instance: the folder may be another machine's,
by NFS or SFTP, and clocks may have been set since.
"""
LONGEST = 4096
"""Bytes of a lease at most."""
WRITER, NOTES = "writer", "notes"
"""Kinds of leases: of the run that writes to the archive, and of one that changes the notes, which
readers do, too.
"""
LAST = 999_999_999
"""The highest generation, that no archive gets to: one a second would take thirty years. Above it a
file is no lease.
"""
_NAME = re.compile(r"(writer|notes)-([0-9]{1,9})(?:-[0-9a-f]{16})?")
_PROBE = re.compile(r"probe-[0-9a-f]{16}")


class Locks(Protocol):
    """The files in an archive's folder ``locks``, as they are in the store at that moment. Raises
    OSError, SparsebakError.
    """

    def list(self) -> dict[str, float]:
        """Names, and when each was written last: seconds by the store's clock."""

    def create(self, name: str, raw: bytes) -> bool | None:
        """Make a file; False where there is one of that name already, None where the store cannot
        make sure of that.
        """

    def put(self, name: str, raw: bytes) -> None:
        """Write a file, whether it is there or not."""

    def renew(self, name: str, raw: bytes) -> None:
        """Write a file again; raise FileNotFoundError where it is known to be gone."""

    def read(self, name: str) -> bytes:
        """A file, the first LONGEST bytes of it; raise FileNotFoundError."""

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens when it is gone."""


class Found(dict[str, tuple[float, Holder | None]]):
    """Leases by name: when renewed, and who holds each; None for one that is free by its
    age alone.
    """

    @property
    def highest(self) -> int:
        """The highest generation; 0 without any."""
        return max(map(generation, self), default=0)

    def held(self) -> dict[str, Holder]:
        """Those that are not free."""
        return {n: h for n, (_, h) in self.items() if h is not None and not h.gone()}


def generation(name: str) -> int:
    """That of a lease's name."""
    match = _NAME.fullmatch(name)
    return int(match[2]) if match else 0


def is_of(kind: str, name: str) -> bool:
    """Whether a file is called as a lease of a kind is."""
    match = _NAME.fullmatch(name)
    return match is not None and match[1] == kind


def look(locks: Locks, kind: str = WRITER) -> Found:
    """What leases of a kind there are."""
    times = locks.list()
    found = _judged(locks, kind, times, max(times.values(), default=0.0))
    if found.held():
        # Is it still held? A file made now tells what time it is in the store. Our own clock is not
        # asked: one that runs ahead would take over what is held.
        probe = f"probe-{os.urandom(8).hex()}"
        try:
            locks.put(probe, b"")
        except (OSError, NoRoomError) as error:
            if not failures.no_room(error):
                raise
            return found  # how old they are nobody knows then: what may be held is
        try:
            times = locks.list()
        finally:
            with suppress(ForbiddenError, OSError):
                locks.remove(probe)
        now = times.get(probe, max(times.values(), default=0.0))
        found = _judged(locks, kind, times, now)
    return found


def holders(locks: Locks) -> list[tuple[str, Holder, float]]:
    """Which other runs hold leases of any kind, without those that are known to be gone: the kind,
    the holder, and when it was renewed by the store's clock. Nothing is written, so that one that
    is free by its age alone is among them.
    """
    times, found = locks.list(), []
    for kind in (WRITER, NOTES):
        # The newest is the lease; what is older was taken over, and not removed yet.
        for name in sorted(filter(partial(is_of, kind), times), key=generation, reverse=True):
            try:
                holder = Holder.load(locks.read(name))
            except FileNotFoundError:  # given back meanwhile
                continue
            if not holder.gone() and not holder.ours():
                found.append((kind, holder, times[name]))
                break
    return found


def dead_probes(times: dict[str, float], now: float) -> list[str]:
    """Probes so old at ``now``, by the store's clock, that their makers died."""
    return [name for name, at in times.items() if _PROBE.fullmatch(name) and now - at > STALE]


def _judged(locks: Locks, kind: str, times: dict[str, float], now: float) -> Found:
    found = Found()
    for name, at in times.items():
        if not is_of(kind, name):
            continue
        holder = None
        if now - at <= STALE:
            try:
                raw = locks.read(name)
            except FileNotFoundError:
                continue
            # some file systems have zeros where a power cut took what was written
            if raw.strip(b"\0") or now - at <= _BEGINNING:
                holder = Holder.load(raw)
        found[name] = at, holder
    return found
