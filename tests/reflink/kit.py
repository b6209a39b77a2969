# SPDX-License-Identifier: GPL-2.0-or-later
"""A volume in a folder of reflinks, and what a delta names of it."""

from pathlib import Path

from dom0_agent.config import Pool, Volume
from dom0_agent.sources.reflink import ReflinkSource
from tests.kit import GRAIN

SIZE = 64 * GRAIN


def named_by_delta(source: ReflinkSource, old: int, new: int) -> set[int]:
    ranges = list(source.delta(old, new))
    assert all(a < b for a, b in ranges) and all(
        x[1] < y[0] for x, y in zip(ranges, ranges[1:], strict=False)
    )
    return {
        grain for start, end in ranges for grain in range(start // GRAIN, (end - 1) // GRAIN + 1)
    }


def source_in(folder: Path) -> ReflinkSource:
    return ReflinkSource(Volume("work", "private", Pool("p", "reflink", folder), "work.img"))
