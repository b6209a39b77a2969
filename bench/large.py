# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m bench.large``: a sparse volume of up to 1 TiB with a real agent: time, and memory of
both sides, of each step.
"""

import argparse
import os
import random
import shutil
import tempfile
from pathlib import Path

from bench.__main__ import pool_on_btrfs
from bench.measure import Measured
from bench.tools import Sparsebak

PIECE = 64 << 10
GIB = 1 << 30


def write(image: Path, size: int, pieces: int, seed: int) -> None:
    """So many pieces of random bytes, spread over the image."""
    rng = random.Random(seed)
    with open(image, "r+b") as file:
        for _ in range(pieces):
            os.pwrite(file.fileno(), rng.randbytes(PIECE), rng.randrange(size // PIECE) * PIECE)
        os.fsync(file.fileno())


def steps(pool: Path, work: Path, size: int, content: int) -> dict[str, Measured]:
    """What each step took, on a volume of ``size`` bytes with ``content`` bytes in it."""
    image = pool / "image"
    with open(image, "wb") as file:
        file.truncate(size)
    write(image, size, content // PIECE, 1)
    tool = Sparsebak(pool, work)
    found: dict[str, Measured | None] = {"full": tool.backup()}
    write(image, size, 40, 2)
    found |= {
        "2 MiB changed": tool.backup(),
        "nothing changed": tool.backup(),
        "monitor": tool.monitor(),
    }
    found |= {"verify": tool.verify(), "prune": tool.prune(), "restore": tool.restore()}
    shutil.rmtree(work / "dom0" / "volumes")
    found["all compared again, after dom0's state was lost"] = tool.backup()
    tool.close()
    return {name: measured for name, measured in found.items() if measured is not None}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.large")
    parser.add_argument(
        "--sizes", default="16,128,1024", help="GiB of the volume, one after another"
    )
    parser.add_argument("--content", type=int, default=512, help="MiB in it")
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    sizes = [int(word) for word in options.sizes.split(",")]
    table: dict[str, list[str]] = {}
    for size in sizes:
        work = Path(tempfile.mkdtemp(prefix="sparsebak-large-", dir=options.work))
        try:
            with pool_on_btrfs(work) as pool:
                for name, measured in steps(pool, work, size * GIB, options.content << 20).items():
                    cell = (
                        f"{measured.wall:.2f} s, {measured.memory:.0f} / {measured.agent:.0f} MiB"
                    )
                    table.setdefault(name, []).append(cell)
                    print(f"{size} GiB: {name}: {cell}", flush=True)
        finally:
            shutil.rmtree(work)
    print(f"\n| step | {' | '.join(f'{size:,} GiB' for size in sizes)} |")
    print("|---" * (len(sizes) + 1) + "|")
    for name, cells in table.items():
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
