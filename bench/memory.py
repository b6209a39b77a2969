# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m bench.memory``: what a full backup holds in memory when all its processes together
have most, by process and by what it is.

Shares of pages that several processes have (Pss of proc(5)), so that they add up.
"""

import argparse
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from bench import workload
from bench.__main__ import pool_on_btrfs
from bench.measure import Measured, Watcher, children, family, proportional
from bench.tools import Sparsebak
from common.override import override

EVERY = 0.05
"""Seconds between two looks."""
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)$")
_SHARED = "/dev/zero (deleted)"
"""The kernel's name for memory that Python's mmap gives."""


def kinds(pid: int) -> Counter[str]:
    """KiB of a process by kind of mapping; none when it has ended."""
    found: Counter[str] = Counter()
    kind = ""
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        if match := _MAPPING.match(line):
            kind = _kind(match[1])
        elif line.startswith("Pss:"):
            found[kind] += int(line.split()[1])
    return found


def _kind(path: str) -> str:
    if path == _SHARED:
        return "buffers"
    if path.startswith("/"):
        return "programs and libraries"
    return {"[heap]": "the C library's heap", "": "Python's objects, other heaps"}.get(path, "rest")


class Peak(Watcher):
    """What some processes, and those that they start, have together at most while this runs."""

    def __init__(self, roots: Callable[[], list[int]]) -> None:
        super().__init__(EVERY)
        self._roots = roots
        self.total = 0.0
        self.parts: list[Counter[str]] = []

    @override
    def look(self) -> None:
        at = family(self._roots())
        total = sum(map(proportional, at))
        if total > self.total:
            self.total, self.parts = total, [kinds(pid) for pid in at]


def full(content: int) -> tuple[Measured, Peak]:
    """A full backup of so many MiB; the first of the processes is the resident agent, then come
    the command and the call that works for it.
    """
    work = Path(tempfile.mkdtemp(prefix="sparsebak-bench-"))
    try:
        with pool_on_btrfs(work) as pool:
            workload.make_beside(pool / "image", content)
            tool = Sparsebak(pool, work)
            try:
                agent = tool.agent

                def roots() -> list[int]:
                    return [agent, *(pid for pid in children(os.getpid()) if pid != agent)]

                with Peak(roots) as peak:
                    return tool.backup(), peak
            finally:
                tool.close()
    finally:
        shutil.rmtree(work, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.memory")
    parser.add_argument("--content", type=int, default=workload.CONTENT >> 20, help="MiB")
    options = parser.parse_args()
    measured, peak = full(options.content)
    every = sorted({kind for part in peak.parts for kind in part})
    print(f"| MiB | {' | '.join(every)} | all |\n|---|{'---|' * (len(every) + 1)}")
    names = ["resident agent", "command", *["call"] * len(peak.parts)]
    for name, part in zip(names, peak.parts, strict=False):
        row = [part[kind] / 1024 for kind in every]
        print(f"| {name} | {' | '.join(f'{one:.1f}' for one in (*row, sum(row)))} |")
    print(f"all together {peak.total:.0f} MiB; processor {measured.cpu:.1f} s", flush=True)


if __name__ == "__main__":
    main()
