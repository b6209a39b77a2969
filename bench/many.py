# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m bench.many``: runs over many volumes in which nothing, or little, changed: with a
resident agent, with one that each call reaches 5 ms later, and without one; and every command that
looks at all volumes, with the descriptors that a process may have by default.

Where others use the machine, processor time and calls tell more than wall time: the least of the
rounds is told of each.
"""

import argparse
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.__main__ import pool_on_btrfs
from bench.late import Late, late
from bench.measure import Measured, run
from bench.tools import BIN, serve

MIB = 1 << 20
SIZE = 4 << 30
DESCRIPTORS = 1024
LATER = 5.0
"""Milliseconds that a call costs over qrexec before its service runs, about."""
COMMANDS: tuple[tuple[str | Path, ...], ...] = (
    ("list",),
    ("status",),
    ("doctor",),
    ("scrub",),
    ("verify",),
    ("prune", "--keep-last", "1", "--yes"),
)

Way = tuple[str, str, Callable[[], str]]


class Machine:
    """Volumes in a pool, a resident agent, and an archive of them."""

    def __init__(self, work: Path, pool: Path, volumes: int) -> None:
        self.work, self.pool = work, pool
        self.names = [f"qube{number}" for number in range(volumes)]
        self.config = work / "agent.toml"
        pools = f'[[pool]]\nname = "p"\ndriver = "reflink"\npath = "{pool}"'
        lines = [f'state_dir = "{work}/dom0"\n{pools}']
        for name in self.names:
            place = f'pool = "p"\nvid = "{name}.img"'
            lines.append(f'[[volume]]\nqube = "{name}"\nvolume = "private"\n{place}')
            with open(pool / f"{name}.img", "wb") as file:
                file.truncate(SIZE)
                file.write(os.urandom(MIB))
        self.config.write_text("\n".join(lines) + "\n")
        (work / "pw").write_text("bench\n")
        self.agent: list[str | Path] = [BIN / "sparsebak-agent", "--config", self.config]
        key: list[str | Path] = ["--passphrase-file", work / "pw"]
        run([*self.agent, "archive", "add", "bench", "--caller", "vm", *key])

    def tool(self, where: str, *words: str | Path) -> list[str | Path]:
        """A command of the backup VM, reaching the agent as ``where`` says."""
        return [BIN / "sparsebak", "--agent", where, "--archive", self.work / "archive", *words]

    def change(self) -> None:
        """64 KiB of each volume."""
        for name in self.names:
            with open(self.pool / f"{name}.img", "r+b") as file:
                file.write(os.urandom(64 << 10))
                os.fsync(file.fileno())


@contextmanager
def machine(volumes: int, folder: Path | None) -> Iterator[Machine]:
    """One with so many volumes."""
    work = Path(tempfile.mkdtemp(prefix="sparsebak-bench-", dir=folder))
    try:
        with pool_on_btrfs(work) as pool:
            yield Machine(work, pool, volumes)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _told(what: str, runs: list[Measured], calls: str = "") -> None:
    wall, cpu = min(one.wall for one in runs), min(one.cpu for one in runs)
    print(f"| {what} | {wall:.2f} s | {cpu:.2f} s | {calls} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.many")
    parser.add_argument("--volumes", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--commands", action="store_true", help="all commands once, and no more")
    parser.add_argument("--late", action="store_true", help="the runs with late calls alone")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or hard > DESCRIPTORS:  # of all that is started from here
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    with machine(options.volumes, options.work) as made:
        process = serve(made.agent, made.work)
        print(f"| {options.volumes} volumes | wall | processor | calls |\n|---|---|---|---|")
        try:
            here = f"unix:{made.work}/sockets"
            run(made.tool(here, "init", made.work / "archive", "--label", "bench"))
            _told("the first backup", [run(made.tool(here, "backup"), agent=process.pid)])
            if options.commands:
                made.change()
                for words in (("backup",), *COMMANDS):
                    _told(str(words[0]), [run(made.tool(here, *words), agent=process.pid)])
                _told("monitor", [run([*made.agent, "monitor"])])
                return
            with late(made.work / "sockets", made.work / "late", LATER) as relay:
                ways = _ways(made, here, relay, options.rounds)
                _backups(made, ways[1:2] if options.late else ways, process.pid, options.rounds)
            _told("monitor", [run([*made.agent, "monitor"]) for _ in range(options.rounds)])
        finally:
            process.terminate()
            process.wait()


def _ways(made: Machine, here: str, relay: Late, rounds: int) -> list[Way]:
    """As what a way is told, where it leads to, and the calls that were made on it."""
    return [
        ("", here, lambda: ""),
        (
            f", {LATER:.0f} ms a call",
            f"unix:{made.work}/late",
            lambda: str(relay.calls() // rounds),
        ),
        (", service files", f"local:{made.config}", lambda: ""),
    ]


def _backups(made: Machine, ways: list[Way], agent: int, rounds: int) -> None:
    for what, changed in (("nothing changed", False), ("64 KiB changed", True)):
        for way, where, counted in ways:
            counted()
            runs = []
            for _ in range(rounds):
                if changed:
                    made.change()
                runs.append(run(made.tool(where, "backup"), agent=agent))
            _told(what + way, runs, counted())


if __name__ == "__main__":
    main()
