# SPDX-License-Identifier: GPL-2.0-or-later
"""Files out of a session of 8 GiB: ``python -m bench.files``, as root, for it mounts. A minute or
two.

An ext4 with a file of 1 GiB and 20,000 small ones. ``files ls`` of its root; ``files cp`` of the
large file by turns with ``mount``, a mount of the image by the kernel, and ``cp``. Processor time
is that of the processes, without the kernel's threads.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import workload
from bench.__main__ import pool_on_btrfs
from bench.measure import Measured, run
from bench.tools import BIN, Sparsebak

LARGE = 1 << 30
SMALL = 20_000


@contextmanager
def mounted(image: Path, folder: Path, *options: str) -> Iterator[Path]:
    """A file system in an image, by the kernel."""
    folder.mkdir(exist_ok=True)
    words: list[str | Path] = ["mount", "-o", ",".join(("loop", *options)), image, folder]
    subprocess.run(words, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder: Path) -> None:
    """The large file of ordinary contents, and the small ones in folders of a hundred."""
    contents = workload.ordinary(1)
    with open(folder / "large", "wb") as out:
        while out.tell() < LARGE:
            out.write(next(contents)[: LARGE - out.tell()])
    for number in range(SMALL):
        below = folder / f"folder {number // 100}"
        below.mkdir(exist_ok=True)
        (below / f"file {number}").write_bytes(b"%d " % number * 200)


class Files:
    """The archive, and what is measured on it."""

    def __init__(self, tool: Sparsebak, work: Path) -> None:
        self._work = work
        self._words: list[str | Path] = [BIN / "sparsebak", "--archive", tool.repository]
        self._key: list[str | Path] = ["--passphrase-file", work / "pw"]
        records, self._grant = work / "records", work / "grant"
        sealed: list[str | Path] = ["--agent", f"unix:{work}/sockets", "records"]
        run([*self._words, *sealed, "work/private", "-o", records])
        agent: list[str | Path] = [BIN / "sparsebak-agent", "--config", work / "agent.toml"]
        run([*agent, "grant", "work/private", "--records", records, "-o", self._grant])

    def _files(self, *words: str | Path) -> Measured:
        return run([*self._words, "files", *words, *self._key])

    def start(self) -> Measured:
        """What every command costs that opens the archive."""
        return run([*self._words, "list", "work/private", *self._key])

    def root(self) -> Measured:
        """The root folder, listed."""
        return self._files("ls", "work/private", "/", "-l")

    def by_grant(self) -> Measured:
        """The same with a key that no passphrase has to be turned into."""
        return run([*self._words, "files", "ls", "work/private", "/", "-l", "--grant", self._grant])

    def find(self) -> Measured:
        """All names."""
        return self._files("find", "work/private", "/", "--name", "file 1999?")

    def copied(self) -> Measured:
        """The large file by ``files cp``."""
        target = self._work / "copied"
        found = self._files("cp", "work/private", "/large", target)
        self._compare(target)
        return found

    def by_mount(self) -> Measured:
        """The same by ``mount``, the kernel, and ``cp``."""
        shown, folder, target = self._work / "shown", self._work / "mnt", self._work / "copied"
        shown.mkdir(exist_ok=True)
        start = time.monotonic()
        words = [*self._words, "mount", "work/private", shown, *self._key]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        while not (images := list(shown.glob("*.img"))):
            time.sleep(0.01)
        with mounted(images[0], folder, "ro", "noload"):
            copy = run(["cp", folder / "large", target])
            wall = time.monotonic() - start
        process.send_signal(signal.SIGINT)
        _, _, usage = os.wait4(process.pid, 0)
        self._compare(target)
        cpu = usage.ru_utime + usage.ru_stime + copy.cpu
        return Measured(wall, cpu, usage.ru_maxrss / 1024)

    def _compare(self, target: Path) -> None:
        assert target.stat().st_size == LARGE
        subprocess.run(["cmp", target, self._work / "original"], check=True)
        target.unlink()


def main() -> None:
    """Make it, and measure in turns."""
    parser = argparse.ArgumentParser(prog="python -m bench.files")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="sparsebak-bench-", dir="/var/tmp"))  # noqa: S108
    try:
        with pool_on_btrfs(work) as pool:
            image = pool / "image"
            with open(image, "wb") as out:
                out.truncate(workload.IMAGE)
            subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
            with mounted(image, work / "mnt") as folder:
                fill(folder)
                shutil.copy(folder / "large", work / "original")
            tool = Sparsebak(pool, work)
            try:
                tool.backup()
                _measure(Files(tool, work), options.rounds)
            finally:
                tool.close()
    finally:
        shutil.rmtree(work)


def _measure(files: Files, rounds: int) -> None:
    steps = {
        "list (no files)": files.start,
        "files ls /": files.root,
        "files ls /, with a grant": files.by_grant,
        "files find": files.find,
        "files cp, 1 GiB": files.copied,
        "mount and cp, 1 GiB": files.by_mount,
    }
    found: dict[str, list[Measured]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            found[name].append(step())
    print("| what | wall s | processor s | memory MiB |\n|---|---|---|---|")
    for name, all_of_it in found.items():
        wall, cpu, memory = (
            statistics.median(getattr(one, what) for one in all_of_it)
            for what in ("wall", "cpu", "memory")
        )
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {memory:.0f} |")
    shares = [
        one.wall / other.wall
        for one, other in zip(found["files cp, 1 GiB"], found["mount and cp, 1 GiB"], strict=True)
    ]
    print(f"\nfiles cp takes {statistics.median(shares):.2f}x of mount and cp (aim: 2x)")


if __name__ == "__main__":
    main()
