# SPDX-License-Identifier: GPL-2.0-or-later
"""How time and memory grow with an archive, what 100 TiB would take by that, and a picture of it.

A table has for each operation a row of seconds and MiB, one pair for each size in chunks.
"""

import math
from pathlib import Path


def growth(sizes: list[int], table: dict[str, list[tuple[float, float]]]) -> list[str]:
    """A line for each operation: with which power of the size time and memory grow, from the first
    size to the last. Of time 1 is as the size, 0 not at all; what takes less than 10 ms says
    nothing.
    """
    lines = []
    for name, row in table.items():
        (first, small), (last, large) = row[0], row[-1]
        steps = math.log(sizes[-1] / sizes[0]) if len(sizes) > 1 else 0.0
        if steps:
            took = math.log(max(last, 0.01) / max(first, 0.01)) / steps
            memory = math.log(large / small) / steps
            lines.append(f"{name}: time grows as size^{took:.2f}, memory as size^{memory:.2f}")
    return lines


def planned(chunks: list[int], table: dict[str, list[tuple[float, float]]]) -> list[str]:
    """A line for each operation: what 100 TiB would take. Time by how it grew from the first size
    to the last; memory on a straight line through the last two, for of a small archive it is what
    Python takes, which hides what grows. With chunks of 1 MiB it is an eighth of the chunks.
    """
    lines = []
    for size in (128 << 10, 1 << 20):
        target = (100 << 40) / size
        for name, row in table.items():
            if len(chunks) < 2:
                continue
            first, (last, large) = row[0][0], row[-1]
            steps = math.log(chunks[-1] / chunks[0])
            more = math.log(target / chunks[-1])
            took = last * math.exp(math.log(max(last, 0.01) / max(first, 0.01)) / steps * more)
            rises = max(large - row[-2][1], 0) / (chunks[-1] - chunks[-2])
            memory = large + rises * (target - chunks[-1])
            lines.append(
                f"100 TiB in chunks of {size >> 10} KiB: {name}: {took:,.1f} s, {memory:,.0f} MiB"
            )
    return lines


def plot(chunks: list[int], table: dict[str, list[tuple[float, float]]], target: Path) -> None:
    """Time, and memory, of each operation against the number of chunks."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "sparsebak"
    from matplotlib import pyplot

    figure, sides = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for column, (side, what) in enumerate(
        zip(sides, ("seconds", "MiB of memory at the peak"), strict=True)
    ):
        for name, row in table.items():
            side.plot(chunks, [cell[column] for cell in row], marker="o", label=name)
        side.set(xscale="log", yscale="log", xlabel="chunks of 128 KiB", ylabel=what)
        side.grid(which="major", alpha=0.3)
    sides[0].legend(fontsize="small")
    figure.savefig(target, metadata={"Date": None})
