# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m bench.far``: an archive at S3 and over SFTP, behind a line of 20 ms and 100 Mbit/s:
what each step takes as a multiple of what the line allows for the bytes that passed, and how many
requests it makes.

The servers are moto and OpenSSH on this machine, so that their time counts, too.
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
from contextlib import contextmanager
from pathlib import Path

from bench import workload
from bench.__main__ import pool_on_btrfs
from bench.measure import Measured
from bench.tools import Sparsebak
from tests.remote.kit import Server, free_port, s3_server, ssh_server, wait_for

MIB = 1 << 20
PLACES, PIECE = 16, MIB
"""What is read of a mounted image: so many pieces of that size."""


class Far(Sparsebak):
    """sparsebak with an archive at a server."""

    def __init__(self, pool: Path, work: Path, url: str) -> None:
        self._url = url
        super().__init__(pool, work)

    def place(self) -> str:
        return self._url

    def mounted(self, folder: Path) -> Measured:
        """Pieces of the newest session's image, read through ``mount``."""
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
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not (found := list(folder.rglob("*.img"))):
                if process.poll() is not None:
                    raise RuntimeError("mount ended")
                time.sleep(0.02)
            with open(found[0], "rb") as image:
                size = os.fstat(image.fileno()).st_size
                for number in range(PLACES):
                    os.pread(image.fileno(), PIECE, size // PLACES * number)
            return Measured(time.monotonic() - start, 0, 0)
        finally:
            subprocess.run(["fusermount3", "-u", folder], check=False)
            process.wait()


@contextmanager
def line(server: Server, delay: float, rate: float) -> Iterator[tuple[int, Callable[[], dict]]]:  # type: ignore[type-arg]
    """The port of a line to a server, and what passed since that was last asked."""
    port = free_port()
    options = [f"--delay={delay}", f"--rate={rate}"]
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


def steps(tool: Far, image: Path, work: Path) -> Iterator[tuple[str, Measured | None]]:
    """Every step, one after another."""
    yield "full", tool.backup()
    workload.change(image, 2 * MIB, 40, 1)
    yield "2 MiB changed", tool.backup()
    yield "nothing changed", tool.backup()
    yield "prune one session", tool.prune()
    yield "verify", tool.verify()
    yield "restore", tool.restore()
    yield f"mount, {PLACES} MiB read in as many places", tool.mounted(work / "mounted")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.far")
    parser.add_argument("--content", type=int, default=192, help="MiB in the image")
    parser.add_argument("--delay", type=float, default=0.01, help="seconds, each way")
    parser.add_argument("--rate", type=float, default=12.5e6, help="bytes a second, each way")
    options = parser.parse_args()
    print("| step | s | MiB up, down | of what the line allows | requests |\n|---|---|---|---|---|")
    for kind in (s3_server, ssh_server):
        work = Path(tempfile.mkdtemp(prefix="sparsebak-bench-"))
        (work / "server").mkdir()
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")
        try:
            with (
                pool_on_btrfs(work) as pool,
                kind(work / "server") as server,
                line(server, options.delay, options.rate) as (port, passed),
            ):
                os.environ |= server.environment(port)
                workload.make_beside(pool / "image", options.content)
                tool = Far(pool, work, server.url("archive", port))
                passed()
                for name, measured in steps(tool, pool / "image", work):
                    if measured is not None:
                        told(f"{server.kind}: {name}", measured, passed(), options.rate)
                tool.close()
        finally:
            shutil.rmtree(work, ignore_errors=True)


def told(name: str, measured: Measured, passed: dict[str, object], rate: float) -> None:
    """A row of the table."""
    up, down = int(str(passed["up"])), int(str(passed["down"]))
    allowed = max(up, down) / rate
    ratio = f"{measured.wall / allowed:.2f}x" if max(up, down) > 8 * MIB else "-"
    requests = passed["requests"]
    counts = requests.items() if isinstance(requests, dict) else ()
    print(
        f"| {name} | {measured.wall:.2f} | {up / MIB:.1f}, {down / MIB:.1f} | {ratio} |"
        f" {', '.join(f'{count} {method}' for method, count in counts) or '-'} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
