# SPDX-License-Identifier: GPL-2.0-or-later
"""``make bench-profile``: where the time of each step goes, by stage and side, and how many system
calls it takes.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from bench import workload
from bench.__main__ import machine, pool_on_btrfs
from bench.tools import BIN, configure

STEPS = ("full", "100 MiB", "2 MiB", "nothing", "monitor", "assemble", "verify", "restore", "prune")
TRACED = ("2 MiB", "nothing", "verify")


class Bench:
    """A site with a resident agent that is clocked, and commands that are."""

    def __init__(self, pool: Path, work: Path) -> None:
        self.work, self.archive, self.lines = work, work / "archive", work / "lines"
        self.config = configure(pool, work)
        agent: list[str | Path] = [
            BIN / "sparsebak-agent",
            "--config",
            self.config,
            "archive",
            "add",
            "bench",
        ]
        subprocess.run(
            [*agent, "--caller", "vm", "--passphrase-file", work / "pw"],
            check=True,
            capture_output=True,
        )

    def serve(self, *before: str) -> "subprocess.Popen[str]":
        command = [
            sys.executable,
            "-m",
            "bench.profiled",
            "agent",
            *self._files(),
            "serve",
            "--listen",
        ]
        process = subprocess.Popen(
            [*before, *command, self.work / "sockets"], stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        while "ready" not in process.stderr.readline():
            pass
        return process

    def _files(self) -> list[str]:
        return [str(self.lines), "--config", str(self.config)]

    def monitor(self) -> None:
        """In a process of its own, as the timer in dom0 has it."""
        command = [sys.executable, "-m", "bench.profiled", "monitor", *self._files(), "monitor"]
        subprocess.run(command, check=True, capture_output=True)

    def run(self, *arguments: str | Path, before: tuple[str, ...] = ()) -> str:
        command: list[str | Path] = [sys.executable, "-m", "bench.profiled", "vm", self.lines]
        command += ["--agent", f"unix:{self.work}/sockets", "--archive", self.archive, *arguments]
        return subprocess.run(
            [*before, *command], check=True, capture_output=True, text=True
        ).stdout

    def step(self, name: str, before: tuple[str, ...] = ()) -> str:
        key = ["--passphrase-file", str(self.work / "pw")]
        if name == "monitor":
            self.monitor()
            return ""
        if name == "assemble":
            return self.run(
                "assemble", "work/private", *key, "-o", self.work / "out", "--force", before=before
            )
        if name == "verify":
            return self.run("verify", before=before)
        if name == "restore":
            return self.run("restore", "--yes", "--whole", "work/private", before=before)
        if name == "prune":
            listed = json.loads(self.run("list", "work/private", "--no-space", "--json"))
            session = listed["volumes"][0]["sessions"][1]["session"]
            self.lines.unlink(missing_ok=True)
            return self.run("prune", "work/private", "--session", session, before=before)
        return self.run("backup", before=before)


def profile(bench: Bench, image: Path, name: str, seed: int) -> dict[tuple[str, str], float]:
    """Seconds by side and stage; ``wall`` is the whole command."""
    sizes = {"100 MiB": (100 << 20, 2000), "2 MiB": (2 << 20, 40)}
    if name in sizes:
        workload.change(image, *sizes[name], seed)
    bench.lines.unlink(missing_ok=True)
    bench.step(name)
    found: dict[tuple[str, str], float] = defaultdict(float)
    for line in bench.lines.read_text().splitlines():
        told = json.loads(line)
        if told["side"] == "vm" or name == "monitor":
            found["vm", "wall"] += told["wall"] + told["stages"].get("start, imports", 0)
        for stage, took in told["stages"].items():
            found[told["side"], stage] += took
    return found


def calls(trace: Path) -> str:
    """The most frequent system calls of a ``strace -c``."""
    rows = re.findall(
        r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)(?:\s+\d+)?\s+(\w+)$", trace.read_text(), re.MULTILINE
    )
    counted = sorted(((int(count), name) for count, name in rows if name != "total"), reverse=True)
    return f"{sum(count for count, _ in counted):,}: " + ", ".join(
        f"{name} {count:,}" for count, name in counted[:6]
    )


def traced(bench: Bench, image: Path) -> dict[str, str]:
    """System calls of the manager, and of an agent from its start to its end, for a few steps."""
    counts: dict[str, str] = {}
    ours, theirs = bench.work / "trace-vm", bench.work / "trace-agent"
    strace = ("strace", "-f", "-c", "-o")
    for name in TRACED:
        if name == "2 MiB":
            workload.change(image, 2 << 20, 40, 99)
        agent = bench.serve(*strace, str(theirs))
        bench.step(name, (*strace, str(ours)))
        told = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        os.kill(int(told[0]), signal.SIGTERM)
        agent.wait()
        counts |= {f"manager, {name}": calls(ours), f"agent, {name}": calls(theirs)}
    return counts


def report(results: dict[str, dict[tuple[str, str], float]], counts: dict[str, str]) -> str:
    keys = sorted({key for found in results.values() for key in found if key[1] != "wall"})
    lines = [
        f"# Where the time goes, {datetime.date.today()}: {machine()}", "",
        "Seconds of all threads of a side together, with a clock around each stage; the last row",
        "is the whole command, by the wall.",
        "A resident agent; the image of 8 GiB with 3 GiB in it on Btrfs.", "",
        f"| | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|",
    ]  # fmt: skip
    for side, stage in keys:
        cells = (
            f"{found.get((side, stage), 0):.2f}" if found.get((side, stage), 0) >= 0.005 else ""
            for found in results.values()
        )
        lines.append(f"| {side}: {stage} | {' | '.join(cells)} |")
    walls = [f"{found['vm', 'wall']:.2f}" for found in results.values()]
    lines.append(f"| wall | {' | '.join(walls)} |")
    if counts:
        lines += ["", "System calls:", "", *(f"- {name}: {text}" for name, text in counts.items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.profile")
    parser.add_argument(
        "--content", type=int, default=workload.CONTENT >> 20, help="MiB in the image"
    )
    parser.add_argument("--work", type=Path)
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="sparsebak-bench-", dir=options.work))
    try:
        with pool_on_btrfs(work) as pool:
            subprocess.run(
                [sys.executable, "-m", "bench.workload", pool / "image", str(options.content)],
                check=True,
            )
            bench = Bench(pool, work)
            agent = bench.serve()
            bench.run("init", bench.archive, "--label", "bench")
            results = {
                name: profile(bench, pool / "image", name, at) for at, name in enumerate(STEPS)
            }
            agent.terminate()
            agent.wait()
            text = report(results, traced(bench, pool / "image") if shutil.which("strace") else {})
            print(text)
            if not options.no_write:
                (
                    Path(__file__).parent / "results" / f"profile-{datetime.date.today()}.md"
                ).write_text(text)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
