# SPDX-License-Identifier: GPL-2.0-or-later
"""What the page shows of the archive: answers of commands, kept until something changes, and views
of them that are small enough to be sent.
"""

import asyncio
import time
from bisect import bisect_right
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from heapq import nlargest
from typing import Any

from backup_vm.errors import Exit
from backup_vm.reporting.calendar import calendar, days_of, legend
from backup_vm.reporting.page import figures, grown_since, volume_table
from backup_vm.reporting.rows import VolumeRow, row_name
from backup_vm.ui.program import Failed, Program

FRESH = 30.0
"""Seconds for which an answer is shown again; another machine may write to the archive, too."""
OLD = 120.0
"""Seconds for which an old answer is shown while a new one is made, so that nobody waits."""
AT_ONCE = 2
"""Commands that read at the same time; and downloads beside them, which may take hours."""
PAGE = 200
"""Sessions that are sent at once, at most."""

_FIRST_DAY, _LAST_DAY = 366, 2_900_000
"""Days since 1970 that a calendar has."""


class Reads:
    """Answers by command line."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._slots, self._downloads = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(AT_ONCE)
        self.downloading = 0
        self._writing = False
        self._kept: dict[tuple[str, ...], tuple[float, asyncio.Task[Any]]] = {}
        self._renewing: set[tuple[str, ...]] = set()
        self._times = 0
        """How often all was forgotten."""

    def forget(self) -> None:
        """What was read is not true any more."""
        self._times += 1
        self._kept.clear()

    async def get(self, *words: str) -> tuple[dict[str, Any], list[str]]:
        """See Program.ask; an answer of a moment ago, or one that is being made, is used again."""
        now = time.monotonic()
        self._kept = {
            key: (made, task)
            for key, (made, task) in self._kept.items()
            if not task.done() or (not task.exception() and (self._writing or now - made < OLD))
        }
        if words not in self._kept:
            self._kept[words] = (now, self._begin(words))
        made, task = self._kept[words]
        if task.done() and not self._writing and now - made > FRESH:
            self._renew(words)
        # whoever asked may go, and others wait for the same
        answer: tuple[dict[str, Any], list[str]] = await asyncio.shield(task)
        return answer

    def _begin(self, words: tuple[str, ...]) -> "asyncio.Task[Any]":
        task: asyncio.Task[Any] = asyncio.ensure_future(self._ask(words))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    def _renew(self, words: tuple[str, ...]) -> None:
        """Ask again while the old answer is shown, unless that is being done."""
        if words in self._renewing:
            return
        times = self._times

        def renewed(task: "asyncio.Task[Any]") -> None:
            self._renewing.discard(words)
            if times == self._times and not task.cancelled() and not task.exception():
                self._kept[words] = (time.monotonic(), task)

        self._renewing.add(words)
        self._begin(words).add_done_callback(renewed)

    def warm(self) -> None:
        """Begin to look: what the pages show is there when they are turned to."""
        for words in (("status",), ("doctor",), ("list", "--no-space")):
            if words not in self._kept:
                self._kept[words] = (time.monotonic(), self._begin(words))

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """For a command that reads. Raises Failed where one writes: the archive's lock lets nobody
        read meanwhile, and a request that waits for hours keeps the browser from other ones.
        """
        self._must_be_readable()
        async with self._slots:
            yield

    def _must_be_readable(self) -> None:
        if self._writing:
            raise Failed(Exit.LOCKED, ["work is in progress: this can be read when it has ended"])

    @asynccontextmanager
    async def download(self) -> AsyncIterator[None]:
        """For one that a download waits for. Raises Failed where as many as may be are at work: a
        browser has few connections for all its requests, and one that waits keeps one.
        """
        self._must_be_readable()
        if self._downloads.locked():
            text = f"{AT_ONCE} downloads are at work: ask again when one of them has ended"
            raise Failed(Exit.LOCKED, [text])
        async with self._downloads:
            self.downloading += 1
            try:
                yield
            finally:
                self.downloading -= 1

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """For one that writes, and would find the archive in use by what the page reads."""
        self._writing = True
        taken: list[asyncio.Semaphore] = []
        try:
            for slots in (self._slots, self._downloads) * AT_ONCE:
                await slots.acquire()
                taken.append(slots)
            yield
        finally:
            self._writing = False
            for slots in taken:
                slots.release()

    async def _ask(self, words: tuple[str, ...]) -> tuple[dict[str, Any], list[str]]:
        async with self.slot():
            return await self._program.ask(words)


def sessions(
    volumes: list[VolumeRow], name: str, tag: str, until: int | None, offset: int, limit: int
) -> dict[str, Any]:
    """One page of sessions, the newest first: of all volumes, or of the one called ``name``; with
    ``tag``, and not newer than ``until``, where these are given.
    """
    chosen = [
        (session["time"], row_name(volume), session)
        for volume in volumes
        if not name or row_name(volume) == name or volume["qube"] == name
        for session in volume["sessions"]
        if (not tag or tag in session["tags"]) and (until is None or session["time"] <= until)
    ]
    chosen.sort(key=lambda one: (-one[0], one[1]))
    limit = max(1, min(limit, PAGE))
    page = [{**session, "name": of} for _, of, session in chosen[max(offset, 0) : offset + limit]]
    return {"total": len(chosen), "sessions": page}


def days(volumes: list[VolumeRow], name: str, last: int | None) -> dict[str, Any]:
    """The year up to the day ``last``, or today, as the report draws it; days since 1970."""
    found = days_of(
        session["time"]
        for volume in volumes
        if not name or row_name(volume) == name or volume["qube"] == name
        for session in volume["sessions"]
    )
    today = int(time.time()) // 86400
    newest = max(today, min(max(found, default=today), _LAST_DAY))
    last = newest if last is None else min(last, newest)
    return {
        "calendar": calendar(found, max(last, _FIRST_DAY), "Sessions by day"),
        "legend": legend(),
        "oldest": min(found, default=today),
        "newest": newest,
        "last": last,
        "volumes": sorted(map(row_name, volumes)),
    }


def moment(volumes: list[VolumeRow], at: int) -> list[dict[str, Any]]:
    """Each volume as of a time: its newest session not after it, or None."""
    found = []
    for volume in volumes:
        times = [session["time"] for session in volume["sessions"]]
        # a clock that went back leaves times out of order: then the newest by time counts
        order = sorted(range(len(times)), key=times.__getitem__)
        place = bisect_right([times[index] for index in order], at)
        session = volume["sessions"][order[place - 1]] if place else None
        found.append({"name": row_name(volume), "session": session})
    return sorted(found, key=lambda row: str(row["name"]))


def space(volumes: list[VolumeRow], status: Any) -> dict[str, Any]:
    """What takes the space: the report's own pieces."""
    known = {row["id"]: row for row in status["volumes"]}
    keys = ("own", "shared", "compression", "deduplication")
    rows: list[VolumeRow] = [
        {**volume, **{key: known.get(volume["id"], {}).get(key) for key in keys}}  # type: ignore[typeddict-item]
        for volume in volumes
    ]
    rows.sort(key=lambda volume: -(volume["own"] or 0))
    return {
        "figures": figures(status, rows),
        "volumes": volume_table("Volumes", rows, whole_name=True),
        "growth": grown_since(status.get("growth") or []),
    }


def largest(volumes: list[VolumeRow]) -> list[dict[str, Any]]:
    """The sessions whose removal alone gives most back."""
    every = (
        (frees, session["session"], row_name(volume))
        for volume in volumes
        for session in volume["sessions"]
        if (frees := session["frees"])
    )
    return [
        {"frees": frees, "session": session, "name": name}
        for frees, session, name in nlargest(20, every)
    ]
