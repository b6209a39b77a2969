# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m bench.threads``: what more threads gain in Extract, and what they cannot.

A thread of Python runs while others do only inside of a call that lets the interpreter go (its
lock, the GIL). Reading, hashing and compressing do; AES-GCM of ``cryptography`` does not, nor does
Python itself, nor the one thread that writes in order. What is not let go is serial: the processor
time of all, divided by that of the serial part, is how many processors can be kept busy. Then the
wall time with so many threads, held to one processor, and not held.
"""

import argparse
import os
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from bench import workload
from dom0_agent.rpc import dispatch, extraction
from tests.kit import Site
from wire.chunks import ChunkIds, Sealer
from wire.messages import Request

MIB = 1 << 20
THREADS = (1, 2, 4, 8, 16)


class Stages:
    """Processor seconds of calls, by stage, in whichever thread they are made."""

    def __init__(self) -> None:
        self.spent = defaultdict[str, float](float)
        self._lock = threading.Lock()

    def timed(self, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, its time being noted."""

        def noted(*arguments: Any) -> Any:
            start = time.thread_time()
            try:
                return call(*arguments)
            finally:
                with self._lock:
                    self.spent[stage] += time.thread_time() - start

        return noted


class Watched:
    """AES-GCM whose time is noted."""

    def __init__(self, stages: Stages, aead: Any) -> None:
        self.encrypt = stages.timed("seal", aead.encrypt)


class Volume:
    """A volume that is extracted again and again, to nowhere."""

    def __init__(self, folder: Path, content: int) -> None:
        self.site = Site(folder / "site", sealed=False, chunk_size=128 << 10)
        workload.make_beside(self.site.image(), content)
        self._toml = self.site.config.read_text()

    def extract(self, threads: int) -> tuple[float, float]:
        """Wall and processor seconds of one call, in this process."""
        self.site.config.write_text(self._toml.replace("threads = 2", f"threads = {threads}"))
        with self.site.open() as archive:
            agent = self.site.agent(archive)
            offer = agent.snapshot("work", "private", bytes(16), 0, 0)
            request = Request(archive=archive.parameters.archive, session=offer.session)
            wall, cpu = self._call(request)
            agent.abort("work", "private", offer.session)
            agent.close()
        return wall, cpu

    def _call(self, request: Request) -> tuple[float, float]:
        environment = {
            "QREXEC_REMOTE_DOMAIN": "backup-vm",
            "QREXEC_SERVICE_ARGUMENT": "private",
            "QREXEC_REQUESTED_TARGET_TYPE": "name",
            "QREXEC_REQUESTED_TARGET": "work",
        }
        asked = self.site.root / "request"
        asked.write_bytes(request.build())
        with open(asked, "rb") as stdin, open(os.devnull, "wb") as stdout:
            wall, cpu = time.monotonic(), time.process_time()
            code = dispatch.run("Extract", environment, self.site.config, stdin, stdout)
            assert code == 0
            return time.monotonic() - wall, time.process_time() - cpu


def stages_of(volume: Volume) -> None:
    """Print the processor time of each stage, and how much of all can only be done by turns."""
    stages, made = Stages(), Sealer.__init__

    def watched(self: Sealer, *arguments: Any) -> None:
        made(self, *arguments)
        self._aead = Watched(stages, self._aead)  # type: ignore[assignment]

    with (
        mock.patch.object(extraction, "_read_into", stages.timed("read", extraction._read_into)),
        mock.patch.object(ChunkIds, "of", stages.timed("hash", ChunkIds.of)),
        mock.patch.object(Sealer, "seal", stages.timed("compress", Sealer.seal)),
        mock.patch.object(Sealer, "__init__", watched),
    ):
        _, total = volume.extract(1)
    spent = stages.spent
    spent["compress"] -= spent["seal"]
    serial = total - spent["read"] - spent["hash"] - spent["compress"]
    spent["Python, and writing in order"] = serial - spent["seal"]
    print("| stage | processor | |\n|---|---|---|")
    for stage, seconds in spent.items():
        print(f"| {stage} | {seconds:.2f} s | {seconds / total:.0%} |")
    most = f"at most {total / serial:.1f} at once"
    print(f"| serial | {serial:.2f} s | {serial / total:.0%}: {most} |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.threads")
    parser.add_argument("--content", type=int, default=512, help="MiB in the image")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sparsebak-bench-"))
    every = os.sched_getaffinity(0)
    try:
        volume = Volume(folder, options.content)
        volume.extract(2)  # imports, and the page cache
        stages_of(volume)
        print("\n| threads | processors | wall | processor time |\n|---|---|---|---|")
        for held in ({min(every)}, every):
            os.sched_setaffinity(0, held)
            for threads in THREADS:
                with mock.patch("os.cpu_count", lambda: THREADS[-1]):
                    runs = [volume.extract(threads) for _ in range(options.rounds)]
                wall, cpu = (min(figures) for figures in zip(*runs, strict=True))
                print(f"| {threads} | {len(held)} | {wall:.2f} s | {cpu:.2f} s |", flush=True)
    finally:
        os.sched_setaffinity(0, every)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
