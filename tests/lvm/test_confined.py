# SPDX-License-Identifier: GPL-2.0-or-later
"""What the unit of the resident agent leaves it is enough for thin pools."""

import random
from collections.abc import Callable

import pytest

from tests.confined import resident
from tests.lvm.kit import LvmSite, scribble

Make = Callable[..., LvmSite]


def use(site: LvmSite, without: str = "") -> None:
    """All that calls do to a pool: snapshots, deltas, a restore in parts and as a whole."""
    rng, own = random.Random(1), site.agent
    scribble(site.image(), rng)
    with resident(site, without) as agent:
        site.agent = lambda *_, **__: agent  # type: ignore[method-assign]
        try:
            for _ in range(2):
                site.backup(agent=agent)
                scribble(site.image(), rng)
            site.restore()
            scribble(site.image(), rng)
            site.restore(whole=True)
        finally:
            site.agent = own  # type: ignore[method-assign]


def test_it_is_enough(lvm_site: Make) -> None:
    site = lvm_site()
    use(site)
    assert list(site.images().values())[-1] == site.contents()


@pytest.mark.parametrize("name", ["SYS_ADMIN", "MKNOD"])
def test_it_is_not_more_than_needed(lvm_site: Make, name: str) -> None:
    """Device-mapper's commands; and its nodes, where udev makes none."""
    with pytest.raises(AssertionError, match="cannot read or write the volume"):
        use(lvm_site(), name)
