# SPDX-License-Identifier: GPL-2.0-or-later
"""What the unit of the resident agent leaves it is enough for images of other owners."""

import os
import random
from pathlib import Path

import pytest

from backup_vm.agent.call import RefusedError
from tests.confined import resident
from tests.kit import GRAIN, Site, fill

OWNER = 1234


def use(site: Site, without: str = "") -> None:
    """A backup and a restore of an image that another user has, in a folder of theirs."""
    rng, own = random.Random(1), site.agent
    fill(site.image(), 20 * GRAIN)
    os.chown(site.pool, OWNER, OWNER)
    os.chmod(site.pool, 0o700)
    os.chown(site.image(), OWNER, OWNER)
    os.chmod(site.image(), 0o600)
    with resident(site, without) as agent:
        site.agent = lambda *_, **__: agent  # type: ignore[method-assign]
        try:
            for _ in range(2):
                site.backup(agent=agent)
                site.disturb(rng)
            site.restore()
            site.disturb(rng)
            with site.image().open("rb"), pytest.raises(RefusedError, match="busy"):
                site.restore()
            site.restore(whole=True)
        finally:
            site.agent = own  # type: ignore[method-assign]
    there = site.image().stat()
    assert (there.st_uid, there.st_gid, there.st_mode & 0o777) == (OWNER, OWNER, 0o600)


def test_it_is_enough(btrfs_folder: Path) -> None:
    site = Site(btrfs_folder / "site", driver="reflink")
    use(site)
    assert list(site.images().values())[-1] == site.contents()


@pytest.mark.parametrize("name", ["DAC_OVERRIDE", "FOWNER", "CHOWN", "LEASE"])
def test_it_is_not_more_than_needed(btrfs_folder: Path, name: str) -> None:
    """Without the last one an image that somebody has open would be replaced."""
    site = Site(btrfs_folder / "site", driver="reflink")
    with pytest.raises((AssertionError, RefusedError, pytest.fail.Exception)) as failed:
        use(site, name)
    assert ("cannot read or write" in str(failed.value)) == (name != "LEASE")
