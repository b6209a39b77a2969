# SPDX-License-Identifier: GPL-2.0-or-later
"""Work that the page asked for, one piece after another: two clicks make no two writers."""

import asyncio
import json
import os
import shlex
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from backup_vm.ui.program import Failed, Program, collect, interrupt, lines, streams, whole
from backup_vm.ui.reads import Reads

KEPT = 100
"""Pieces of work that are remembered when they are over."""
MOST_WAITING = 50
LARGEST_RESULT = 1 << 18
"""Bytes of what a command printed that are kept for the page."""
QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"


class QueueFull(Exception):
    """So much waits already that another one would not be seen."""


@dataclass
class Job:
    """One piece of work. ``asked``: what the page sent, to name it by."""

    id: int
    kind: str
    asked: dict[str, Any]
    words: tuple[str, ...]
    state: str = QUEUED
    code: int | None = None
    progress: dict[str, Any] | None = None
    log: deque[str] = field(default_factory=lambda: deque(maxlen=500))
    result: Any = None
    started: float | None = None
    ended: float | None = None
    begun: float = 0.0
    took: float | None = None
    """Seconds, by a clock that nobody sets; the times are for people."""
    revision: int = 0
    cancelled: bool = False

    @property
    def over(self) -> bool:
        """Whether it ended."""
        return self.state not in (QUEUED, RUNNING)

    def row(self) -> dict[str, Any]:
        """It as the page shows it."""
        return {
            "id": self.id,
            "kind": self.kind,
            "asked": self.asked,
            "command": f"sparsebak {shlex.join(self.words)}",
            "state": self.state,
            "code": self.code,
            "progress": self.progress,
            "log": list(self.log),
            "result": self.result,
            "started": self.started,
            "ended": self.ended,
            "took": self.took,
        }


class Queue:
    """All of it. ``reads`` make way for work, and are forgotten when it has ended."""

    def __init__(self, program: Program, reads: Reads) -> None:
        self._program, self._reads = program, reads
        self._jobs: list[Job] = []
        self._next = 0
        self._revision = 0
        self._news = asyncio.Condition()
        self._wake = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None

    async def add(self, kind: str, asked: dict[str, Any], words: tuple[str, ...]) -> Job:
        """One more, behind the others; the same one that waits already is not put there twice."""
        waiting = [job for job in self._jobs if job.state == QUEUED]
        for job in waiting:
            if job.words == words:
                return job
        if len(waiting) >= MOST_WAITING:
            raise QueueFull
        self._next += 1
        job = Job(self._next, kind, asked, words)
        over = [one for one in self._jobs if one.over]
        for old in over[: max(0, len(over) - KEPT + 1)]:
            self._jobs.remove(old)
        self._jobs.append(job)
        await self._tell(job)
        self._wake.set()
        return job

    async def cancel(self, number: int) -> bool:
        """End one as Ctrl-C does, or take it out of the queue; whether there was one to end."""
        for job in self._jobs:
            if job.id == number and not job.over:
                job.cancelled = True
                if job.state == QUEUED:
                    job.state, job.ended = CANCELLED, time.time()
                elif self._process is not None:
                    interrupt(self._process)
                await self._tell(job)
                return True
        return False

    async def news(self, since: int, patience: float) -> dict[str, Any]:
        """What changed after the revision ``since``; waits for something for ``patience`` seconds
        at most.
        """
        async with self._news:
            if self._revision <= since:
                with suppress(TimeoutError):
                    await asyncio.wait_for(
                        self._news.wait_for(lambda: self._revision > since), patience
                    )
            return {
                "revision": self._revision,
                "ids": [job.id for job in self._jobs],
                "jobs": [job.row() for job in self._jobs if job.revision > since],
            }

    async def run(self) -> None:
        """Do it all, for ever."""
        while True:
            job = next((job for job in self._jobs if job.state == QUEUED), None)
            if job is None:
                self._wake.clear()
                await self._wake.wait()
                continue
            if self._reads.downloading:
                job.log.append("waits until the downloads have ended")
                await self._tell(job)
            async with self._reads.alone():
                if job.state == QUEUED:  # not cancelled meanwhile
                    try:
                        await self._run(job)
                    except (Failed, OSError) as error:  # the others must not wait for ever
                        job.log.append(str(error))
                        job.state, job.ended = FAILED, time.time()
                        job.took = time.monotonic() - job.begun
            self._reads.forget()
            await self._tell(job)

    async def _tell(self, job: Job) -> None:
        async with self._news:
            self._revision += 1
            job.revision = self._revision
            self._news.notify_all()

    async def _run(self, job: Job) -> None:
        job.state, job.started, job.begun = RUNNING, time.time(), time.monotonic()
        await self._tell(job)
        process, reading = await self._started(job)
        stdout, stderr = streams(process)
        loose: list[asyncio.Task[None]] = []

        def line(one: str) -> None:
            job.log.append(one)
            loose.append(asyncio.ensure_future(self._tell(job)))

        try:
            out, _, _ = await asyncio.gather(
                whole(stdout),
                collect(stderr, line),
                self._follow(job, reading),
            )
            job.code = await process.wait()
        finally:
            interrupt(process)
            self._process = None
            self._program.ended(process)
        await asyncio.gather(*loose)
        job.ended, job.progress = time.time(), None
        job.took = time.monotonic() - job.begun
        with suppress(ValueError):
            job.result = json.loads(out) if len(out) <= LARGEST_RESULT else None
        failed = CANCELLED if job.cancelled else FAILED
        job.state = DONE if job.code == 0 else failed

    async def _started(self, job: Job) -> tuple[asyncio.subprocess.Process, int]:
        """A job's command, and a descriptor from which its progress is read; interrupted already
        where the job was cancelled meanwhile.
        """
        reading, writing = os.pipe()
        try:
            process = await self._program.start(job.words, progress=writing)
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._process = process
        if job.cancelled:
            interrupt(process)
        return process, reading

    async def _follow(self, job: Job, reading: int) -> None:
        """Take in what the child says of its progress, until it closes its end."""
        loop = asyncio.get_running_loop()
        stream = asyncio.StreamReader()
        pipe = open(reading, "rb", buffering=0)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), pipe
        )
        try:
            async for line in lines(stream):
                with suppress(ValueError):
                    said = json.loads(line)
                    if isinstance(said, dict):
                        job.progress = said
                        await self._tell(job)
        finally:
            transport.close()
