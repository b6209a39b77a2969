# SPDX-License-Identifier: GPL-2.0-or-later
"""The runs of ``make bench-guard`` as data: a line of JSON each in ``results/history.jsonl``.

A step's figures are multiples of what ``zstd -3 -T2`` took for the image in the same run, wall
seconds to wall seconds and processor seconds to processor seconds, the least of the run's rounds:
whatever else a machine does only adds to both.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.measure import Measured

PATH = Path(__file__).parent / "results" / "history.jsonl"
LATEST = 5
"""So many runs, the newest, are what a new one is held against."""
SLOWER = {"cpu": 1.10, "wall": 1.25}
"""How much more counts as slower. Processor time varies by 3 % from run to run on a machine that
has nothing else to do, wall time by a tenth."""
LEAST = 0.003
"""A step's ratio that is smaller varies by more than what it measures."""

Ratios = dict[str, dict[str, float]]


@dataclass
class Run:
    """One run: which data, where, and for each step the ratios ``wall`` and ``cpu``."""

    date: str
    version: str
    machine: str
    content: int
    rounds: int
    ratios: Ratios


def ratios(limit: Sequence[Measured], steps: dict[str, list[Measured]]) -> Ratios:
    """Those of a run, ``limit`` being what the compressor alone took."""
    wall, cpu = (min(getattr(one, what) for one in limit) for what in ("wall", "cpu"))
    return {
        step: {
            "wall": round(min(one.wall for one in runs) / wall, 4),
            "cpu": round(min(one.cpu for one in runs) / cpu, 4),
        }
        for step, runs in steps.items()
    }


def read(path: Path = PATH) -> list[Run]:
    """All runs, oldest first; none where there is no file."""
    if not path.exists():
        return []
    return [Run(**json.loads(line)) for line in path.read_text().splitlines()]


def keep(run: Run, path: Path = PATH) -> None:
    """Add a run."""
    with open(path, "a") as file:
        file.write(json.dumps(asdict(run)) + "\n")


def alike(run: Run, before: Sequence[Run]) -> list[Run]:
    """The latest runs on as much data, which are what a run is held against."""
    return [one for one in before if one.content == run.content][-LATEST:]


def slower(run: Run, before: Sequence[Run]) -> list[str]:
    """A line for each figure that is worse than the median of the runs that are alike."""
    others, found = alike(run, before), []
    for step, figures in run.ratios.items():
        for what, now in figures.items():
            kept = [one.ratios[step][what] for one in others if what in one.ratios.get(step, {})]
            usual = statistics.median(kept) if kept else now
            if now > max(usual, LEAST) * SLOWER[what]:
                found.append(f"{step}: {what} {now:.3f} of zstd -3 -T2, usually {usual:.3f}")
    return found
