# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress on a terminal, with rate and time left; silent anywhere else."""

import contextlib
import os
import sys
import time
from typing import IO, Any, cast

from backup_vm.errors import UsageError
from backup_vm.terminal.output import Forgiving
from common.override import override


class Progress:
    """Says nothing. What is shown on a terminal is in TerminalProgress."""

    def start(self, total: int) -> None:
        """Begin a piece of work of ``total`` bytes."""

    def volume(self, name: str) -> None:
        """Turn to a volume."""

    def advance(self, size: int) -> None:
        """``size`` bytes are done."""

    def finished(self, size: int) -> None:
        """The volume is done; it counted ``size`` bytes of the total."""

    def stop(self) -> None:
        """End."""


class TerminalProgress(Progress):
    """A bar on standard error. A terminal that is closed meanwhile is no reason to fail."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bar

        columns: list[Any] = [
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        ]
        self._what = what
        self._bar = Bar(
            *columns, console=Console(file=cast(IO[str], Forgiving(sys.stderr))), transient=True
        )
        self._task: Any = None
        self._before = 0.0
        self._pending = 0

    @override
    def start(self, total: int) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(self._what, total=max(total, 1))
        self._before = 0.0
        self._bar.start()

    @override
    def volume(self, name: str) -> None:
        self._bar.update(self._task, description=f"{self._what} {name}")

    @override
    def advance(self, size: int) -> None:
        self._pending += size
        if self._pending >= 8 << 20:  # a lock is taken for each update
            self._bar.advance(self._task, self._pending)
            self._pending = 0

    @override
    def finished(self, size: int) -> None:
        self._pending = 0
        self._before += size
        self._bar.update(self._task, completed=self._before)

    @override
    def stop(self) -> None:
        self._bar.stop()


class DescriptorProgress(Progress):
    """Lines of JSON for a program: ``what``, the volume's ``name``, bytes ``done`` and in
    ``total``. A reader that is gone is no reason to fail.
    """

    INTERVAL = 0.2
    """Seconds between two lines, at least."""

    def __init__(self, what: str, fd: int) -> None:
        self._said: dict[str, Any] = {"what": what, "name": "", "done": 0, "total": 0}
        self._fd, self._finished, self._next = fd, 0, 0.0

    @override
    def start(self, total: int) -> None:
        self._finished = 0
        self._say(total=total, done=0)

    @override
    def volume(self, name: str) -> None:
        self._say(name=name)

    @override
    def advance(self, size: int) -> None:
        self._said["done"] += size
        if time.monotonic() >= self._next:
            self._say()

    @override
    def finished(self, size: int) -> None:
        self._finished += size
        self._say(done=self._finished)

    def _say(self, **news: Any) -> None:
        import json

        self._said.update(news)
        self._next = time.monotonic() + self.INTERVAL
        with contextlib.suppress(OSError):
            os.write(self._fd, json.dumps(self._said).encode() + b"\n")


def progress_to(what: str, fd: int) -> Progress:
    """Lines to a descriptor; raise UsageError if it is not open."""
    try:
        os.fstat(fd)
    except (OSError, OverflowError):
        raise UsageError(f"--progress-fd {fd}: it is not open") from None
    return DescriptorProgress(what, fd)


def progress_for(what: str, quiet: bool, fd: int | None = None) -> Progress:
    """Lines to the descriptor ``fd`` if there is one; else a bar if standard error is a terminal
    and ``quiet`` is not asked for.
    """
    if fd is not None:
        return progress_to(what, fd)
    watched = sys.stderr is not None and sys.stderr.isatty()
    return TerminalProgress(what) if watched and not quiet else Progress()
