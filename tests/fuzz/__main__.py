# SPDX-License-Identifier: GPL-2.0-or-later
"""``make fuzz``, or ``python -m tests.fuzz TARGET --seconds N``: coverage-guided fuzzing of one
target, or of all in turn.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["common", "wire", "dom0_agent", "backup_vm"]):
    from tests.fuzz import targets

MEMORY = 700
"""MiB that a target may come to use; growth beyond is a failure, as a crash and a hang are."""
HANG = 10
"""Seconds one input may take."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", nargs="?", choices=targets.TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument(
        "--seed", type=int, default=0, help="where chance begins; 0: somewhere else each time"
    )
    options = parser.parse_args()
    if options.target is None:
        for name in targets.TARGETS:
            print(f"fuzz: {name}", flush=True)
            subprocess.run(
                [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(options.seconds)],
                check=True,
            )
        return
    corpus = Path(tempfile.mkdtemp(prefix="sparsebak-corpus-"))
    inputs = (*targets.seeds(options.target), *targets.at_fields(options.target))
    for number, seed in enumerate(inputs):
        (corpus / f"seed-{number}").write_bytes(seed)
    target = targets.TARGETS[options.target]
    flags = [
        f"-max_total_time={options.seconds}",
        f"-rss_limit_mb={MEMORY}",
        f"-timeout={HANG}",
        "-max_len=300000",
        f"-seed={options.seed}",
    ]
    atheris.Setup(
        [sys.argv[0], *flags, "-print_final_stats=1", f"-artifact_prefix={corpus}/", str(corpus)],
        target,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
