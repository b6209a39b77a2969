# SPDX-License-Identifier: GPL-2.0-or-later
"""Measuring a command: wall time, processor time, peak memory of all its processes."""

import compileall
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from common.override import override

_TREE = Path(__file__).parent.parent


@dataclass
class Measured:
    """One run. Seconds, and MiB."""

    wall: float
    cpu: float
    """Of the command, of all it started, and of what a resident agent did meanwhile."""
    memory: float
    """Peak of the command's largest process."""
    agent: float = 0
    """Peak of the largest process that a resident agent forked for it."""
    together: float = 0
    """Peak of all processes at once, the agent's among them; pages that they share count once."""

    def __add__(self, after: "Measured") -> "Measured":
        """Two commands that together are one step."""
        return Measured(
            self.wall + after.wall,
            self.cpu + after.cpu,
            max(self.memory, after.memory),
            max(self.agent, after.agent),
            max(self.together, after.together),
        )


def run(
    arguments: list[str | Path],
    environment: dict[str, str] | None = None,
    agent: int | None = None,
    **options: object,
) -> Measured:
    """Run a command to its end, ``agent`` being the process of a resident agent that works for it;
    raise RuntimeError with what it said when it fails.
    """
    log = Path("/tmp") / f"bench-{os.getpid()}.log"
    before, start = _spent(agent), time.monotonic()
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [str(argument) for argument in arguments],
            env={**os.environ, **(environment or {})},
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            **options,  # type: ignore[call-overload]
        )
        with Watch(process.pid, agent) as watch:
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.monotonic() - start
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"{arguments[0]}: {log.read_text()[-2000:]}")
    largest = usage.ru_maxrss / 1024
    spent = usage.ru_utime + usage.ru_stime + _spent(agent) - before
    return Measured(wall, spent, largest, watch.agent, max(watch.together, largest))


def _spent(agent: int | None) -> float:
    """Processor seconds of a process and of its children that ended. Waits until those that answer
    a call have ended.
    """
    if agent is None:
        return 0
    until = time.monotonic() + 1
    while children(agent) and time.monotonic() < until:
        time.sleep(0.005)
    fields = Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """The processes that one started, by whichever of its threads; none when it has ended."""
    found: list[int] = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def family(roots: Iterable[int]) -> list[int]:
    """Processes, those that they started, and so on, each once."""
    found = list(roots)
    for pid in found:  # grows by the children while it is walked
        found += [child for child in children(pid) if child not in found]
    return found


class Watcher:
    """Looks again and again, in a thread, while a ``with`` block runs."""

    def __init__(self, every: float) -> None:
        self._every, self._done = every, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self._every):
            self.look()

    def look(self) -> None:
        """One look."""
        raise NotImplementedError


class Watch(Watcher):
    """The peak memory of a command's processes and those of an agent, looked at while they run."""

    _EVERY, _SELDOM = 0.02, 10
    # What is shared is counted by walking all pages of a process, which waits for that meanwhile:
    # done every 20 ms it made a command of 0.1 s half as slow again.

    def __init__(self, command: int, agent: int | None) -> None:
        super().__init__(self._EVERY)
        self._command, self._agent = command, agent
        self.together = self.agent = 0.0
        self._looks = 0

    @override
    def look(self) -> None:
        forked = children(self._agent) if self._agent is not None else []
        self.agent = max([self.agent, *map(_peak, forked)])
        self._looks += 1
        if self._looks % self._SELDOM == 0:
            at = family([self._command] if self._agent is None else [self._command, self._agent])
            self.together = max(self.together, sum(map(proportional, at)))


def proportional(pid: int) -> float:
    """MiB of a process now, its share of what it shares; 0 when it has ended."""
    return _read(f"/proc/{pid}/smaps_rollup", r"^Pss:\s+(\d+)")


def _peak(pid: int) -> float:
    """MiB that a process had at most; 0 when it has ended."""
    return _read(f"/proc/{pid}/status", r"^VmHWM:\s+(\d+)")


def _read(path: str, pattern: str) -> float:
    try:
        found = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) / 1024 if found else 0


def compiled() -> None:
    """Have our modules compiled, as packages install them: an environment may forbid Python to keep
    what it compiles, and then each command compiles all that it imports, 80 ms.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for name in ("common", "wire", "dom0_agent", "backup_vm", "bench"):
        compileall.compile_dir(_TREE / name, quiet=1)


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
