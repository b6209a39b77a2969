# SPDX-License-Identifier: GPL-2.0-or-later
"""State and archive that do not fit together: noticed, and healed by sending only what differs."""

from collections.abc import Callable
from pathlib import Path

import pytest

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
