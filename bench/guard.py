# SPDX-License-Identifier: GPL-2.0-or-later
"""``make bench-guard``: a quick run of sparsebak alone, compared with the runs before it; says what
got slower. Exit code: 1 when something did. ``--keep`` adds the run to the history.
"""

import argparse
import datetime
import shutil
import sys
import tempfile
from pathlib import Path

from bench import history, workload
from bench.__main__ import Round, machine, pool_on_btrfs
from bench.measure import Measured
from bench.report import Results
from bench.tools import Sparsebak

CONTENT = 512
BESIDE = "zstd -3 -T2"


def measured(content: int, rounds: int) -> history.Run:
    """The ratios of so many rounds over an image with so many MiB in it."""
    work = Path(tempfile.mkdtemp(prefix="sparsebak-bench-"))
    limit: dict[str, list[Measured]] = {}
    results: Results = {}
    try:
        with pool_on_btrfs(work) as pool:
            workload.make_beside(pool / "original", content)
            for number in range(rounds):
                Round([Sparsebak], pool, work, number, results).run(limit)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return history.Run(
        str(datetime.date.today()),
        Sparsebak.version().split()[-1],
        machine(),
        content,
        rounds,
        history.ratios(limit[BESIDE], results["sparsebak"]),
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.guard")
    parser.add_argument("--content", type=int, default=CONTENT, help="MiB in the image")
    parser.add_argument("--rounds", type=int, default=3, help="the least of so many counts")
    parser.add_argument("--keep", action="store_true", help="add this run to the history")
    options = parser.parse_args()
    before = history.read()
    run = measured(options.content, options.rounds)
    for step, figures in run.ratios.items():
        print(f"{step}: wall {figures['wall']:.3f}, processor {figures['cpu']:.3f} of {BESIDE}")
    if not history.alike(run, before):
        print("bench-guard: no run on as much data is kept to compare with; BENCH=--keep keeps one")
    worse = history.slower(run, before)
    if options.keep:
        history.keep(run)
    print("\n".join(f"SLOWER: {line}" for line in worse) or "bench-guard: nothing got slower")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
