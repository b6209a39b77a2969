# SPDX-License-Identifier: GPL-2.0-or-later
"""The workload: an 8 GiB sparse image with 3 GiB in it: half ordinary files, a quarter random, a
tenth repeats, some text.

``python -m bench.workload IMAGE MIB`` makes it.
"""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MIB = 1 << 20
IMAGE = 8 << 30
CONTENT = 3 << 30
RUN = 3 * MIB
"""Content is in runs of this size, spread over the image."""


def ordinary(seed: int) -> Iterator[bytes]:
    """Bytes of files of this machine, RUN at a time, without end."""
    rng, buffer = random.Random(seed), bytearray()
    files = [
        p
        for folder in ("/usr/lib", "/usr/share", "/usr/bin")
        for p in sorted(Path(folder).rglob("*"))
        if _usable(p)
    ]
    rng.shuffle(files)
    while True:
        for path in files:
            buffer += path.read_bytes()[: 8 * MIB]
            while len(buffer) >= RUN:
                yield bytes(buffer[:RUN])
                del buffer[:RUN]


def _usable(path: Path) -> bool:
    try:
        return (
            path.is_file()
            and not path.is_symlink()
            and path.stat().st_size > 0
            and os.access(path, os.R_OK)
        )
    except OSError:
        return False


def offsets(content: int = CONTENT, size: int = IMAGE) -> list[int]:
    """Where the runs of so much content are in an image: offsets, rising."""
    return [RUN * at for at in sorted(_sample(random.Random(1), content, size))]


def _sample(rng: random.Random, content: int, size: int) -> list[int]:
    return rng.sample(range(size // RUN - 1), content // RUN)


def make(image: Path, content: int = CONTENT, size: int = IMAGE) -> None:
    """Write the image. The same seed gives the same layout."""
    rng, files = random.Random(1), ordinary(1)
    runs = content // RUN
    places = sorted(_sample(rng, content, size))
    rng.shuffle(places)
    kinds = (["files"] * 50 + ["random"] * 25 + ["repeat"] * 10 + ["text"] * 15) * (runs // 100 + 1)
    kinds = kinds[:runs]
    rng.shuffle(kinds)
    written: list[bytes] = []
    with open(image, "wb") as out:
        out.truncate(size)
        for place, kind in zip(places, kinds, strict=True):
            if kind == "files":
                data = next(files)
            elif kind == "random":
                data = rng.randbytes(RUN)
            elif kind == "repeat" and written:
                data = rng.choice(written)
            else:
                words = [
                    rng.choice(b"the quick brown fox jumps over lazy dogs again".split())
                    for _ in range(2000)
                ]
                data = (b" ".join(words) * (RUN // 4000))[:RUN].ljust(RUN, b".")
            if len(written) < 8:
                written.append(data)
            os.pwrite(out.fileno(), data, place * RUN)
        os.fsync(out.fileno())


def make_beside(image: Path, content: int) -> None:
    """The same with so many MiB, in a process of its own: a child begins with its parent's peak of
    memory, so that the one that measures stays small.
    """
    subprocess.run([sys.executable, "-m", "bench.workload", image, str(content)], check=True)


def change(image: Path, total: int, places: int, seed: int) -> list[tuple[int, int]]:
    """Overwrite ``total`` bytes in so many places within the content, aligned to blocks; returns
    their offsets and lengths, which may overlap.
    """
    changed = []
    rng = random.Random(seed)
    each = max(4096, total // places // 4096 * 4096)
    layout = random.Random(1)
    size = os.stat(image).st_size
    runs = sorted(_sample(layout, min(CONTENT, size), size))
    with open(image, "r+b") as file:
        for _ in range(places):
            at = rng.choice(runs) * RUN + rng.randrange((RUN - each) // 4096) * 4096
            os.pwrite(file.fileno(), rng.randbytes(each // 2) + b"changed " * (each // 16), at)
            changed.append((at, each))
        os.fsync(file.fileno())
    return changed


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]) << 20)
