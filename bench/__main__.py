# SPDX-License-Identifier: GPL-2.0-or-later
"""``make bench``: every step of every tool and the machine's limits on the same data, in one run;
kept in bench/results/.

The tools take turns: each step is done by one after another before the next step, for a machine's
speed changes with time.
"""

import argparse
import datetime
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench import workload
from bench.limits import Limits
from bench.measure import Measured, compiled, warm
from bench.peers import PEERS
from bench.report import Results, report
from bench.tools import Sparsebak, SparsebakFiles, Tool, size_of

CHANGES = {"100 MiB": (100 << 20, 2000), "2 MiB": (2 << 20, 40)}
STEPS = (
    *("full", "100 MiB", "2 MiB", "nothing", "monitor", "assemble", "verify", "prune"),
    # In this order: what was restored as a whole is all in other places, and has to be read.
    *("restore 100 MiB", "restore"),
)
READING = ("assemble", "verify", "restore", "restore 100 MiB")
"""Steps that read an archive as a whole."""


@contextmanager
def pool_on_btrfs(work: Path) -> Iterator[Path]:
    """A Btrfs of its own in a file, for the images; everything else is on the file system of the
    work folder.
    """
    compiled()
    if os.geteuid() != 0:
        sys.exit("bench: needs root to mount a Btrfs by loop")
    image, pool = work / "btrfs.img", work / "pool"
    with open(image, "wb") as file:
        file.truncate(32 << 30)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True, capture_output=True)
    pool.mkdir()
    subprocess.run(["mount", "-o", "loop", image, pool], check=True)
    try:
        yield pool
    finally:
        subprocess.run(["umount", pool], check=False)


def _settle(name: str, tool: Tool) -> None:
    """The same for everybody: nothing left to write, and what is read as a whole in memory, as the
    data of the limits are.
    """
    for _ in range(2):  # what the loop mount brings to disk, the file system below writes then
        subprocess.run(["sync"], check=True)
    if name in READING:
        warm([path for path in tool.repository.rglob("*") if path.is_file()])


def installed() -> list[type[Tool]]:
    """Ours, and those of the peers that are on this machine."""
    return [Sparsebak, SparsebakFiles, *(peer for peer in PEERS if peer.program())]


def step(name: str, tool: Tool, image: Path, work: Path, seed: int) -> Measured | None:
    """One step of one tool; None where it has no such thing."""
    if name == "assemble":
        return _assemble(tool, image, work / "assembled")
    if name in ("monitor", "verify", "prune", "restore"):
        return getattr(tool, name)()  # type: ignore[no-any-return]
    if name == "restore 100 MiB":  # from the same archive as before
        workload.change(image, *CHANGES["100 MiB"], seed)
        subprocess.run(["sync"], check=True)
        return tool.put_back()
    changed = workload.change(image, *CHANGES[name], seed) if name in CHANGES else []
    return tool.backup(None if name == "full" else changed)


def _assemble(tool: Tool, image: Path, target: Path) -> Measured:
    measured = tool.assemble(target)
    got = target if target.is_file() else next(target.rglob("image"))
    if _digest(got) != _digest(image):
        sys.exit(f"bench: what {tool.name} gave back is not what it was given")
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    return measured


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()


class Round:
    """All steps with all tools, by turns, each tool with an image of its own. A peer that fails is
    left out from there on.
    """

    def __init__(
        self, kinds: list[type[Tool]], pool: Path, work: Path, number: int, results: Results
    ) -> None:
        self._kinds, self._pool, self._work = kinds, pool, work
        self._number, self._results = number, results
        self._tools: dict[str, tuple[Tool, Path]] = {}

    def run(self, limit: dict[str, list[Measured]]) -> dict[str, tuple[float, int]]:
        """Add what is measured to the results, and to ``limit`` what the machine can do; returns
        the sizes of the archives.
        """
        limits = Limits(self._pool / "original", self._work)
        for kind in self._kinds:
            self._begin(kind)
        for seed, name in enumerate(STEPS):
            for what, one in limits.measure(name).items():
                limit.setdefault(what, []).append(one)
            for tool, image in list(self._tools.values()):
                self._step(name, tool, image, seed)
        limits.close()
        return self._end()

    def _begin(self, kind: type[Tool]) -> None:
        folder, volumes = self._places(kind)
        folder.mkdir()
        # Wyng wants a subvolume.
        subprocess.run(["btrfs", "-q", "subvolume", "create", volumes], check=True)
        original, image = self._pool / "original", volumes / "image"
        subprocess.run(["cp", "--reflink=always", original, image], check=True)
        try:
            self._tools[kind.name] = (kind(volumes, folder), image)
        except RuntimeError as error:
            self._leave_out(kind.name, error)

    def _places(self, kind: type[Tool]) -> tuple[Path, Path]:
        """Where a tool has its archive, and where its volumes."""
        name = f"{kind.name}-{self._number}"
        return self._work / name, self._pool / name

    def _leave_out(self, name: str, error: RuntimeError) -> None:
        print(f"{name}: left out: {' '.join(str(error).split())[-300:]}", flush=True)
        if name in self._tools:
            self._tools.pop(name)[0].close()
        self._results.pop(name, None)

    def _step(self, name: str, tool: Tool, image: Path, seed: int) -> None:
        _settle(name, tool)
        try:
            measured = step(name, tool, image, self._work, seed)
        except RuntimeError as error:
            self._leave_out(tool.name, error)
            return
        if measured is not None:
            self._results.setdefault(tool.name, {}).setdefault(name, []).append(measured)
            print(
                f"round {self._number + 1}, {name}, {tool.name}: {measured.wall:.2f} s", flush=True
            )

    def _end(self) -> dict[str, tuple[float, int]]:
        """The sizes of the archives, which are removed."""
        sizes: dict[str, tuple[float, int]] = {}
        for kind in self._kinds:
            if kind.name in self._tools:
                tool, _ = self._tools[kind.name]
                sizes[kind.name] = size_of(tool)
                tool.close()
            folder, volumes = self._places(kind)
            shutil.rmtree(folder)
            for volume in filter(Path.is_dir, sorted(volumes.glob("*"))):  # snapshots of Wyng's
                subprocess.run(
                    ["btrfs", "-q", "subvolume", "delete", volume], check=False, capture_output=True
                )
            with suppress(OSError):
                shutil.rmtree(volumes)
        return sizes


def machine() -> str:
    """One line on what this was measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(
        (line.split(":")[1].strip() for line in lines if "model name" in line), "unknown processor"
    )
    return (
        f"{cpu}, {os.cpu_count()} cores, Linux {platform.release()}, Python"
        f" {platform.python_version()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument(
        "--rounds", type=int, default=1, help="rounds of every tool; medians are shown"
    )
    parser.add_argument("--only", action="append", help="only this tool; may be given again")
    parser.add_argument(
        "--content", type=int, default=workload.CONTENT >> 20, help="MiB in the image"
    )
    parser.add_argument("--work", type=Path, help="folder to work in (default: the temporary one)")
    parser.add_argument(
        "--no-write", action="store_true", help="do not keep the result in bench/results/"
    )
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="sparsebak-bench-", dir=options.work))
    try:
        with pool_on_btrfs(work) as pool:
            workload.make_beside(pool / "original", options.content)
            limit: dict[str, list[Measured]] = {}
            results: Results = {}
            sizes: dict[str, tuple[float, int]] = {}
            kinds = [kind for kind in installed() if not options.only or kind.name in options.only]
            for number in range(options.rounds):
                # Whoever comes first finds the disk and its cache less settled.
                first = number % len(kinds)
                turns = kinds[first:] + kinds[:first]
                sizes = Round(turns, pool, work, number, results).run(limit)
            versions = [kind.version() for kind in kinds if kind.name in results]
            text = report(machine(), versions, limit, results, sizes)
            print(text)
            if not options.no_write:
                folder = Path(__file__).parent / "results"
                folder.mkdir(exist_ok=True)
                (folder / f"{datetime.date.today()}.md").write_text(text)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
