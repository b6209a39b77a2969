# SPDX-License-Identifier: GPL-2.0-or-later
"""What the unit of the resident agent leaves it is enough for ZFS volumes."""

import random
from collections.abc import Callable

import pytest

from tests.confined import resident
from tests.zfs.kit import ZfsSite, scribble, zfs

Make = Callable[..., ZfsSite]


def use(site: ZfsSite, without: str = "") -> None:
    """All that calls do to a pool: snapshots, clones, deltas, a restore of a volume that is
    gone.
    """
    rng, own = random.Random(1), site.agent
    scribble(site.image(), rng)
    with resident(site, without) as agent:
        site.agent = lambda *_, **__: agent  # type: ignore[method-assign]
        try:
            for _ in range(2):
                scribble(site.image(), rng)
                site.backup(agent=agent)
            before = site.contents()
            zfs("destroy", "-r", f"{site.container.name}/work/private")
            site.restore()
            assert site.contents() == before
        finally:
            site.agent = own  # type: ignore[method-assign]


def test_it_is_enough(zfs_site: Make) -> None:
    use(zfs_site())


def test_it_is_not_more_than_needed(zfs_site: Make) -> None:
    with pytest.raises(AssertionError, match="cannot read or write the volume"):
        use(zfs_site(), "SYS_ADMIN")
