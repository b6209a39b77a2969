# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs all parts of ``make test``, whatever becomes of each, and says at the end how each went.

    python tools/parts.py [--workers N]

Lanes run at once, on two cores, and the parts of a lane one after the other. The first lane is the
one on the screen; what another prints is shown as a whole in the end, and kept under
``build/parts``. Exit code: 0 when every part passed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build" / "parts"
SKIPS = ROOT / "build" / "skipped"
BIN = Path(sys.executable).parent
APART = ("lvm", "files/test_vm.py", "zfs", "ceph", "ui/in_browser", "system")
"""What of tests/ is not in the main part: it has a part or a target of its own."""


@dataclass(frozen=True)
class Part:
    """``commands`` are all run, in order; the part fails if one of them does."""

    name: str
    commands: tuple[tuple[str, ...], ...]


@dataclass
class Outcome:
    """How a part went, and in how many seconds."""

    part: Part
    failed: bool
    seconds: float


Lane = tuple[Part, ...]


def lanes(workers: str) -> tuple[Lane, ...]:
    """What is run, with so many processes of pytest where there are many tests."""
    python, ruff, pytest = sys.executable, str(BIN / "ruff"), (sys.executable, "-m", "pytest")
    checks = ((ruff, "check", "."), (ruff, "format", "--check", "."), (str(BIN / "mypy"),))
    apart = tuple(f"--ignore=tests/{path}" for path in APART)
    lvm = (python, "tools/lvm_vm.py", "tests/lvm", "-q", "-n", "2", "--dist", "worksteal")
    again = ("-p", "tests.oldest", "--ignore=tests/files/test_vm.py")
    again += tuple(f"tests/{name}" for name in ("unit", "run", "damage", "files", "formats"))
    oldest = (python, "tools/oldest.py", "-n", workers, "-q", *again)
    # The kernel of the LVM tests runs on one core; mypy, too, and the machines of tests/system
    # mostly wait.
    return (
        (
            Part("lint", checks),
            Part("system", ((*pytest, "tests/system"),)),
            Part("main", ((*pytest, "-n", workers, *apart),)),
            Part("oldest", (oldest,)),
        ),
        (Part("lvm", (lvm,)),),
    )


def run_all(lanes: tuple[Lane, ...]) -> list[Outcome]:
    """Run every part of every lane; their outcomes in the order of the lanes."""
    first, *others = lanes
    beside, found = [_Beside(lane) for lane in others], list[Outcome]()
    try:
        found += [_run(part, None) for part in first]
    finally:
        for lane in beside:
            found += lane.ended()
    return found


def _run(part: Part, log: IO[bytes] | None) -> Outcome:
    begun, failed = time.monotonic(), False
    for command in part.commands:
        print(f"--- {part.name}: {' '.join(map(_shown, command))}", flush=True)
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
        )
        failed = failed or done.returncode != 0
    return Outcome(part, failed, time.monotonic() - begun)


class _Beside:
    """A lane that runs while another is on the screen."""

    def __init__(self, lane: Lane) -> None:
        self._lane, self._found = lane, list[Outcome]()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        for part in self._lane:
            with open(LOGS / part.name, "wb") as log:
                self._found.append(_run(part, log))

    def ended(self) -> list[Outcome]:
        """Wait for it and show what it printed."""
        self._thread.join()
        for outcome in self._found:
            print(f"--- {outcome.part.name}, which ran meanwhile:", flush=True)
            with open(LOGS / outcome.part.name, "rb") as log:
                shutil.copyfileobj(log, sys.stdout.buffer)
            sys.stdout.flush()
        return self._found


def _shown(word: str) -> str:
    path = Path(word)
    return str(path.relative_to(ROOT)) if path.is_absolute() and path.is_relative_to(ROOT) else word


def report(outcomes: list[Outcome], skipped: str) -> str:
    """The last lines of the run: how long each part took, and what failed or was not run."""
    lines = [
        f"  {outcome.part.name:<8}{'FAILED' if outcome.failed else 'passed'}"
        f" in {outcome.seconds:.0f} s"
        for outcome in outcomes
    ]
    failed = [outcome.part.name for outcome in outcomes if outcome.failed]
    if failed:
        last = f"FAILED: {', '.join(failed)}"
    elif skipped.strip():
        last = f"passed, but not run here: {'; '.join(skipped.splitlines())}"
    else:
        last = "passed, all of it"
    return "\n".join([*lines, f"make test: {last}"])


def main(arguments: list[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="parts.py")
    parser.add_argument("--workers", default="auto", help="of pytest, in the parts that have some")
    given = parser.parse_args(arguments)
    LOGS.mkdir(parents=True, exist_ok=True)
    SKIPS.write_text("")
    os.environ["SPARSEBAK_SKIPS"] = str(SKIPS)
    try:
        outcomes = run_all(lanes(given.workers))
    except KeyboardInterrupt:  # which the parts were sent, too
        return 130
    print(report(outcomes, SKIPS.read_text()), flush=True)
    return int(any(outcome.failed for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
