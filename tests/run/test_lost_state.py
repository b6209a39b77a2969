# SPDX-License-Identifier: GPL-2.0-or-later
"""State and archive that do not fit together: noticed, and healed by sending only what differs."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.certainty import cut_off_after, write
from tests.kit import GRAIN, Site, fill
from tests.lost_state import SCENARIOS

SIZE = 40 * GRAIN + 123


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_on_plain_files(site: Site, scenario: Callable[[Site], None]) -> None:
    fill(site.image(), SIZE)
    scenario(site)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_on_btrfs(btrfs_folder: Path, scenario: Callable[[Site], None]) -> None:
    site = Site(btrfs_folder / "site", driver="reflink")
    fill(site.image(), SIZE)
    scenario(site)


@pytest.mark.parametrize("driver", ["file", "reflink"])
def test_a_snapshot_that_was_cut_short_is_not_compared_with(
    btrfs_folder: Path, driver: str
) -> None:
    """As when a pool is copied to a disk that is too small: the base, then that of a session that
    was cut off.
    """
    site = Site(btrfs_folder / "site", driver=driver)
    fill(site.image(), SIZE)
    site.backup()
    for instead in (None, os.mkfifo):
        (base,) = (site.pool / ".sparsebak").rglob("*.snap")
        os.truncate(base, 100)
        if instead is not None:
            base.unlink()
            instead(base)
        write(site, 1, 20)
        site.backup()
        assert list(site.images().values())[-1] == site.contents()
    write(site, 2, 10)
    cut_off_after(site, 1)
    write(site, 3, 30)
    for snapshot in (site.pool / ".sparsebak").rglob("*.snap"):
        os.truncate(snapshot, 100)
    site.backup()
    assert list(site.images().values())[-1] == site.contents()
