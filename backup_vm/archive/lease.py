# SPDX-License-Identifier: GPL-2.0-or-later
"""A writer's lease in the store: one run writes to an archive at a time, from whatever machine,
whatever flock is worth.

A lease is a file ``locks/writer-<generation>``. Whoever wants one looks at what is there, makes the
file of the next generation, which the store lets only one of many do, and looks again: any other
lease that is not free now means that another run came in between, and this one withdraws. Where a
store cannot make a file only where there is none, runs that begin at once each make one, and the
oldest stays: it waits for the others to withdraw, and begins when it sees no other. So the store's
times decide who waits for whom, and never that two run. The holder writes its file again every
minute, and looks for a higher generation.

What is not renewed for half an hour is free, by the store's own clock: times of files there are
compared with each other only. A holder gives up after half of that without a renewal, by a clock
that runs on while its machine sleeps, so that it has given up when another one begins. A holder on
this machine whose process is gone, or that ran before the machine's last start, is free at once. So
no two runs believe at one time that they hold an archive, given that the store lists what was
written before, that clocks run at less than twice each other's speed, and that no two machines have
both machine id and host name in common.

What a lease says is written by anybody who can write to the store: it is bounded, and only ever
shown or compared.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from backup_vm import failures
from backup_vm.archive.holder import Holder, given_back
from backup_vm.archive.lease_files import (
    LAST,
    STALE,
    WRITER,
    Found,
    Locks,
    dead_probes,
    generation,
    is_of,
    look,
)
from backup_vm.errors import ForbiddenError, LockedError, NoRoomError, SparsebakError

RENEWAL = 60.0
"""Seconds between two renewals."""
_FIRST = 2.0
"""Seconds until the first one, which brings the lease to disk: after a power cut it still says
whose it was.
"""
_HALF = STALE / 2
_RETRY = 10.0
_TRIES = 4
_WITHDRAWING = (0.2, 0.5, 1.0, 2.0)
"""Seconds between the looks at whether runs that began later have withdrawn."""


def _boot_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Clocks(NamedTuple):
    """``boot`` runs on while the machine sleeps, ``wall`` while it is paused, too, and may be set;
    both in seconds.
    """

    boot: Callable[[], float] = _boot_time
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


class Lease:
    """A lease that is held, until ``check`` says otherwise."""

    def __init__(
        self, locks: Locks, place: str, holder: Holder, clocks: Clocks, kind: str = WRITER
    ) -> None:
        self._locks, self._place, self._clocks, self._kind = locks, place, clocks, kind
        self.name, self.holder = "", holder
        self.conditional = True
        """Whether the store makes a file only where there is none of its name."""
        self.taken_over: list[str] = []
        """Whose leases were free by their age alone, for people."""
        self._sure = self._wall = 0.0
        self._lost = ""
        self._without = False
        """Whether there was no room for it yet."""
        self._taking = threading.Lock()
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def acquire(
        cls,
        locks: Locks,
        place: str,
        command: str,
        clocks: Clocks | None = None,
        kind: str = WRITER,
        makes_room: bool = False,
    ) -> "Lease":
        """Take the lease of the archive at ``place``; raise LockedError when another run has it.

        A run that ``makes_room`` begins without it on a server that is full, as any does in a
        folder on a disk that is; it has it when there is room.
        """
        clocks = clocks or Clocks()
        holder = Holder.this(command)
        for attempt in range(_TRIES):
            if attempt:  # others are about to take it, too
                import random

                clocks.sleep(random.uniform(0.05, 0.5) * attempt)  # noqa: S311
            lease = cls(locks, place, holder, clocks, kind)
            try:
                if lease._take():
                    return lease
            except NoRoomError:
                if not makes_room:
                    raise
                lease._without = True
                return lease
        raise LockedError(f"{place} is in use by other runs that begin", "try again")

    def _take(self) -> bool:
        """Try to take it; whether that was possible. Raises LockedError when it is held."""
        before = look(self._locks, self._kind)
        for other in before.held().values():
            raise in_use(self._place, other)
        # From before the file is made: it is as old as that at least, whenever the store got it.
        self._sure, self._wall = self._clocks.boot(), self._clocks.wall()
        try:
            made = self._make(_following(before.highest))
        except OSError as error:
            # Without room nothing new can be stored, and a prune that makes room has to begin.
            if not failures.no_room(error):
                raise
            self._without = True
            return True
        if not made:
            self.name = ""
            return False
        try:
            if times := self._alone(before):
                self._remove_free(before, times)
                return True
        except BaseException:
            self.release()
            raise
        self.release()
        return False

    def _make(self, number: int) -> bool:
        """Make the file; whether that was us."""
        raw = self.holder.dump()
        name = f"{self._kind}-{number}"
        made = self._locks.create(name, raw)
        if made is None:  # the name says by itself whose it is; who begins at the same time sees it
            self.conditional = False
            name = f"{name}-{self.holder.token[:16]}"
            self._locks.put(name, raw)
            made = True
        elif not made:  # or were we, and the answer was lost?
            with suppress(FileNotFoundError):
                made = self._locks.read(name) == raw
        self.name = name
        return made

    def _alone(self, before: Found) -> dict[str, float]:
        """What files there are when all leases but ours are free; nothing where that does not come
        to be.
        """
        for pause in (*_WITHDRAWING, None):
            times = self._locks.list()
            mine, others = times.get(self.name), self._others(before, times)
            if mine is not None and not others:
                return times
            oldest = min(((at, name) for name, at in others.items()), default=(0.0, ""))
            if mine is None or oldest < (mine, self.name) or pause is None:
                break
            self._clocks.sleep(pause)
        return {}

    def _others(self, before: Found, times: dict[str, float]) -> dict[str, float]:
        """The leases that are not free, of those that there are now (``times``)."""
        # Of two runs that make their files at one time each looks after it has made its own: one of
        # them at least sees the other.
        others = {}
        for name, at in times.items():
            if not is_of(self._kind, name) or name == self.name:
                continue
            if before.get(name, (None,))[0] == at:
                continue
            try:  # whoever was about to begin may have withdrawn
                other = Holder.load(self._locks.read(name))
                # A store that looks at no condition may not let its first try be removed.
                if other.token != self.holder.token and not other.gone():
                    others[name] = at
            except FileNotFoundError:
                continue
        return others

    def _remove_free(self, before: Found, times: dict[str, float]) -> None:
        """Remove the leases that were free, and probes whose makers died."""
        for name, (_, holder) in before.items():
            if holder is None:
                with suppress(FileNotFoundError):
                    self.taken_over.append(str(Holder.load(self._locks.read(name))))
        # By the age of our own file, which was made now: a probe that is all there is tells no age.
        for name in (*before, *dead_probes(times, times[self.name])):
            try:
                self._locks.remove(name)
            except (ForbiddenError, OSError) as error:
                if before.highest >= LAST:
                    raise LockedError(
                        f"{self._place} has a lease of the last generation that there can be:"
                        f" {error}",
                        "where files may be removed: sparsebak unlock",
                    ) from None
                return  # whoever may only add leaves it to whoever may remove

    def keep(self) -> None:
        """Renew it now and then, in the background, until it is released."""
        if self.name and self._thread is None:
            self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
            self._thread.start()

    def _keep(self) -> None:
        pause = min(_FIRST, RENEWAL)
        while not self._end.wait(pause) and not self._lost:
            try:
                self.renew()
                pause = RENEWAL
            except LockedError:
                return
            except (OSError, SparsebakError):  # until it is too late there is time to try again
                pause = _RETRY
            except BaseException as error:  # a thread that ends unseen leaves what nobody renews
                self._lost = self._lost or f"its renewal failed: {error!r}"
                return

    def renew(self) -> None:
        """Write it again; raise LockedError when it is lost, OSError or SparsebakError when that
        cannot be known.
        """
        with self._lock:
            begun, wall = self._clocks.boot(), self._clocks.wall()
            if begun - self._sure >= _HALF:
                self._lose("it could not be renewed in time")
            times = self._locks.list()
            if self.name not in times:
                self._lose("it was removed")
            mine = generation(self.name)
            # Generations only rise: whoever took over has a higher one, also where our file stays.
            if any(is_of(self._kind, name) and generation(name) > mine for name in times):
                self._lose("another run has taken it over")
            try:
                if self._locks.read(self.name) != self.holder.dump():
                    self._lose("another run has taken it over")
                self._locks.renew(self.name, self.holder.dump())
            except FileNotFoundError:
                self._lose("it was removed")
            # The request itself may have taken that long: it counts from when it was sent.
            if self._clocks.boot() - self._sure >= _HALF:
                self._lose("it could not be renewed in time")
            self._sure, self._wall = begun, wall

    def _lose(self, why: str) -> None:
        self._lost = why
        self.check()

    def check(self) -> None:
        """Raise LockedError when the lease is lost, or may be: nothing must be written then."""
        if self._without and not self._end.is_set():
            self._take_late()
        if self.name and not self._lost:
            if self._clocks.boot() - self._sure >= _HALF:
                self._lost = "it could not be renewed in time"
            elif self._clocks.wall() - self._wall >= _HALF:
                # The clock was set, or this machine stood still and did not notice.
                try:
                    self.renew()
                except (OSError, SparsebakError) as error:
                    self._lost = self._lost or f"it could not be renewed: {error}"
        if self._lost:
            raise LockedError(
                f"the lease of {self._place} is lost: {self._lost}; this run ends here",
                "what was stored is kept; try again when no other run is left",
            )

    def _take_late(self) -> None:
        """Take it if there is room for it by now: what this run removes is room for others, too.
        Raise LockedError when another has it.
        """
        with self._taking:
            if not self._without:
                return
            self._without = False
            try:
                if not self._take():
                    raise LockedError(f"{self._place} is in use by another run", "try again")
            except NoRoomError:
                self._without = True
            except BaseException as error:
                self._lost = f"it could not be taken: {error}"
                raise
            if not self._without:
                self.keep()

    def release(self) -> None:
        """Give it back; nothing is raised, for it is free by itself after a while."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(5)
        if not self.name:
            return
        name, self.name = self.name, ""
        given_back.add(self.holder.token)
        with suppress(OSError, SparsebakError):
            if self._lost and self._locks.read(name) != self.holder.dump():
                return  # it is another one's by now
            try:
                self._locks.remove(name)
            except (ForbiddenError, OSError):  # or other machines would wait for half an hour
                self._locks.renew(name, self.holder._replace(released=True).dump())


def _following(highest: int) -> int:
    """The generation after those that there are."""
    if highest < LAST:
        return highest + 1
    import random

    # After the last one, which somebody wrote there by hand, any: two runs get different ones and
    # see each other, and who gets the lease removes what is above its own.
    return random.randrange(1, LAST // 2)  # noqa: S311


def in_use(place: str, holder: Holder) -> LockedError:
    """The error to raise when another run has the lease."""
    return LockedError(
        f"{place} is in use by another run ({holder})",
        "wait for it to end; if it was cut off where this cannot be seen: sparsebak unlock",
    )
