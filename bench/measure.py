"""Measuring a command: wall time, processor time, peak memory of its largest process."""

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Measured:
    """One run. Seconds, and MiB."""

    wall: float
    cpu: float
    memory: float
    stored: float | None = None


def run(arguments: list[str | Path], environment: dict[str, str] | None = None, **options: object) -> Measured:
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


def stored(folder: Path) -> float:
    """MiB that a folder takes up on disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()) / (1 << 20)


def files(folder: Path) -> int:
    """Files in a folder."""
    return sum(1 for path in folder.rglob("*") if path.is_file())
