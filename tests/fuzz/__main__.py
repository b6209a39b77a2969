# SPDX-License-Identifier: GPL-2.0-or-later
"""``make fuzz``, or ``python -m tests.fuzz TARGET --seconds N``: coverage-guided fuzzing of one
target, or of all in turn.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["common", "wire", "dom0_agent", "backup_vm"]):
    from tests.fuzz import targets

MEMORY = 700
"""MiB that a target may come to use; growth beyond is a failure, as a crash and a hang are."""
HANG = 25
"""Seconds one input may take."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", nargs="?", choices=targets.TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--runs", type=int, default=-1, help="at most so many inputs")
    parser.add_argument(
        "--seed", type=int, default=0, help="where chance begins; 0: somewhere else each time"
    )
    parser.add_argument(
        "--asked",
        action="store_true",
        help="the targets of standard input's lines, each with a file for what it says",
    )
    options = parser.parse_args()
    if options.asked:
        for line in sys.stdin:
            name, _, log = line.rstrip("\n").partition(" ")
            print(_in_child(name, log, options), flush=True)
    elif options.target is None:
        for name in targets.TARGETS:
            print(f"fuzz: {name}", flush=True)
            subprocess.run(
                [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(options.seconds)],
                check=True,
            )
    else:
        _fuzz(options.target, options)


def _in_child(name: str, log: str, options: argparse.Namespace) -> int:
    """Fuzz a target in a process that need not load everything again; how it ended."""
    pid = os.fork()
    if pid == 0:
        try:
            for number in (1, 2):
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT, 0o600), number)
            _fuzz(name, options)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _fuzz(name: str, options: argparse.Namespace) -> None:
    """Fuzz a target; the process ends with it."""
    corpus = Path(tempfile.mkdtemp(prefix="sparsebak-corpus-"))
    inputs = (*targets.seeds(name), *targets.at_fields(name))
    for number, seed in enumerate(inputs):
        (corpus / f"seed-{number}").write_bytes(seed)
    flags = [
        f"-max_total_time={options.seconds}",
        f"-runs={options.runs}",
        f"-rss_limit_mb={MEMORY}",
        f"-timeout={HANG}",
        "-max_len=300000",
        f"-seed={options.seed}",
    ]
    atheris.Setup(
        [sys.argv[0], *flags, "-print_final_stats=1", f"-artifact_prefix={corpus}/", str(corpus)],
        targets.TARGETS[name],
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
