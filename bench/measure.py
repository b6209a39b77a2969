# SPDX-License-Identifier: GPL-2.0-or-later
"""Measuring a command: wall time, processor time, peak memory of its largest process."""

import os
import re
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Measured:
    """One run. Seconds, and MiB."""

    wall: float
    cpu: float
    memory: float
    agent: float = 0
    """MiB of memory of the largest process that a resident agent forked for it."""


def run(
    arguments: list[str | Path], environment: dict[str, str] | None = None, **options: object
) -> Measured:
    """Run a command to its end; raise RuntimeError with what it said when it fails."""
    log = Path("/tmp") / f"bench-{os.getpid()}.log"
    start = time.monotonic()
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [str(argument) for argument in arguments],
            env={**os.environ, **(environment or {})},
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            **options,  # type: ignore[call-overload]
        )
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - start
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"{arguments[0]}: {log.read_text()[-2000:]}")
    return Measured(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def warm(paths: list[Path]) -> None:
    """Have files in the page cache. Not read here, for a child begins with its parent's peak of
    memory.
    """
    for at in range(0, len(paths), 1000):
        subprocess.run(["cat", *paths[at : at + 1000]], check=True, stdout=subprocess.DEVNULL)


def stored(folder: Path) -> float:
    """MiB that a folder takes up on disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()) / (
        1 << 20
    )


def files(folder: Path) -> int:
    """Files in a folder."""
    return sum(1 for path in folder.rglob("*") if path.is_file())


class ChildrenPeak:
    """The peak memory of the processes that another one forks, looked at while they run."""

    _EVERY = 0.05

    def __init__(self, pid: int) -> None:
        self._pid, self._peak, self._done = pid, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(self._EVERY):
            try:
                children = Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text().split()
                told = [Path(f"/proc/{child}/status").read_text() for child in children]
            except (FileNotFoundError, ProcessLookupError):  # ended just now
                continue
            for text in told:
                found = re.search(r"VmHWM:\s+(\d+)", text)
                self._peak = max(self._peak, int(found[1]) / 1024 if found else 0)

    def take(self) -> float:
        """MiB since it was last asked for."""
        peak, self._peak = self._peak, 0.0
        return peak

    def stop(self) -> None:
        """No longer look."""
        self._done.set()
        self._thread.join()
