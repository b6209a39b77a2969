# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m bench.far``: an archive at S3 and over SFTP, behind a line of 20 ms and 100 Mbit/s:
what each step takes as a multiple of what the line allows for the bytes that passed, where the line
stood idle meanwhile, and how many requests it makes.

The servers are moto and OpenSSH on this machine, so that their time counts, too. Where others use
the machine, wall time says little; where the line stands idle and how often something waits for an
answer ("turns", see ``line``) says what there is to mend.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from bench import workload
from bench.__main__ import pool_on_btrfs
from bench.measure import Measured
from bench.tools import Sparsebak
from tests.remote.kit import Server, free_port, s3_server, ssh_server, wait_for

MIB = 1 << 20
LEAST, EDGE = 8 * MIB, MIB // 4
"""Bytes from which on a step is compared with the line; and what at their beginning and end may be
requests.
"""
SERVERS = {"s3": s3_server, "sftp": ssh_server}
PLACES, PIECE = 16, MIB
"""What is read of a mounted image: so many pieces of that size."""


class Far(Sparsebak):
    """sparsebak with an archive at a server."""

    def __init__(self, pool: Path, work: Path, url: str) -> None:
        self._url = url
        self.began = 0.0
        """When the last command began, by time.monotonic."""
        super().__init__(pool, work)

    def _run(self, *command: str | Path) -> Measured:
        self.began = time.monotonic()
        return super()._run(*command)

    def place(self) -> str:
        return self._url

    def mounted(self, folder: Path, content: int) -> Measured:
        """Pieces of the newest session's image, which has so many MiB in it, read through
        ``mount``.
        """
        folder.mkdir()
        key: list[str | Path] = ["--passphrase-file", self.work / "pw"]
        command: list[str | Path] = [
            *self._tool,
            "mount",
            "work/private",
            folder,
            "--session",
            "latest",
            *key,
        ]
        start = self.began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not (found := list(folder.rglob("*.img"))):
                if process.poll() is not None:
                    raise RuntimeError("mount ended")
                time.sleep(0.02)
            with open(found[0], "rb") as image:
                for place in workload.offsets(content << 20)[:: max(1, content // 3 // PLACES)]:
                    os.pread(image.fileno(), PIECE, place)
            return Measured(time.monotonic() - start, 0, 0)
        finally:
            subprocess.run(["fusermount3", "-u", folder], check=False)
            process.wait()


@contextmanager
def line(server: Server, delay: float, rate: float) -> Iterator[tuple[int, Callable[[], dict]]]:  # type: ignore[type-arg]
    """The port of a line to a server, and what passed since that was last asked."""
    port = free_port()
    options = [f"--delay={delay}", f"--rate={rate}"]
    options += ["--kept"] if server.kind == "s3" else []
    with subprocess.Popen(
        [sys.executable, "-m", "bench.line", str(port), str(server.port), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        ask, answers = process.stdin, process.stdout

        def passed() -> dict[str, object]:
            print(file=ask, flush=True)
            return dict(json.loads(answers.readline()))

        wait_for(port, process)  # type: ignore[arg-type]
        server.know(port)
        try:
            yield port, passed
        finally:
            process.terminate()


def steps(
    tool: Far, image: Path, work: Path, content: int
) -> Iterator[tuple[str, Measured | None]]:
    """Every step, one after another."""
    yield "full", tool.backup()
    workload.change(image, 2 * MIB, 40, 1)
    yield "2 MiB changed", tool.backup()
    yield "nothing changed", tool.backup()
    yield "prune one session", tool.prune()
    yield "verify", tool.verify()
    yield "restore", tool.restore()
    yield f"mount, {PLACES} MiB read in as many places", tool.mounted(work / "mounted", content)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.far")
    parser.add_argument("--content", type=int, default=192, help="MiB in the image")
    parser.add_argument("--delay", type=float, default=0.01, help="seconds, each way")
    parser.add_argument("--rate", type=float, default=12.5e6, help="bytes a second, each way")
    parser.add_argument("--full", action="store_true", help="the full backup alone")
    parser.add_argument("--only", choices=SERVERS, help="one kind of server alone")
    options = parser.parse_args()
    idle = "idle at the start, between, at the end"
    print(f"| step | s | MiB up, down | of what the line allows | {idle} | turns, requests |")
    print("|---|---|---|---|---|---|")
    for kind in [SERVERS[options.only]] if options.only else SERVERS.values():
        work = Path(tempfile.mkdtemp(prefix="sparsebak-bench-"))
        try:
            _behind_a_line(kind, work, options)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _behind_a_line(
    kind: Callable[[Path], AbstractContextManager[Server]], work: Path, options: argparse.Namespace
) -> None:
    """Print the rows of one kind of server."""
    (work / "server").mkdir()
    os.environ["XDG_CACHE_HOME"] = str(work / "cache")
    with (
        pool_on_btrfs(work) as pool,
        kind(work / "server") as server,
        line(server, options.delay, options.rate) as (port, passed),
    ):
        os.environ |= server.environment(port)
        workload.make_beside(pool / "image", options.content)
        tool = Far(pool, work, server.url("archive", port))
        passed()
        done = steps(tool, pool / "image", work, options.content)
        for name, measured in islice(done, 1 if options.full else None):
            if measured is not None:
                name = f"{server.kind}: {name}"
                told(name, measured, tool.began, passed(), options.rate)
        tool.close()


def told(name: str, measured: Measured, began: float, passed: dict[str, Any], rate: float) -> None:
    """A row of the table."""
    way = max(("up", "down"), key=lambda one: int(passed[one]))
    up, down = int(passed["up"]), int(passed["down"])
    ratio = standing = "-"
    if passed[way] > LEAST:
        ratio = f"{measured.wall / (passed[way] / rate):.2f}x"
        parts = idle(passed["busy"][way], began, began + measured.wall, EDGE / rate)
        standing = ", ".join(f"{part:.2f}" for part in parts) + " s"
    counts = [f"{passed['turns']} turns"]
    counts += [f"{count} {method}" for method, count in passed["requests"].items()]
    print(
        f"| {name} | {measured.wall:.2f} | {up / MIB:.1f}, {down / MIB:.1f} | {ratio} |"
        f" {standing} | {', '.join(counts)} |",
        flush=True,
    )


def idle(
    busy: list[tuple[float, float]], began: float, ended: float, edge: float
) -> tuple[float, float, float]:
    """Seconds in which a line that was ``busy`` at those times stood idle: before its load began,
    between, and after it had ended. What it carries in ``edge`` seconds is no load: requests.
    """
    total = sum(end - begin for begin, end in busy)
    first, last = (_carried(busy, part) for part in (edge, total - edge))
    return first - edge - began, last - first - (total - 2 * edge), ended - last - edge


def _carried(busy: list[tuple[float, float]], seconds: float) -> float:
    """When the line had been busy for so long."""
    for begin, end in busy:
        if seconds <= end - begin:
            return begin + seconds
        seconds -= end - begin
    return busy[-1][1]


if __name__ == "__main__":
    main()
