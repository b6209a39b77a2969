# SPDX-License-Identifier: GPL-2.0-or-later
"""State and archive that do not fit together, on a thin pool."""

import random
from collections.abc import Callable

import pytest

from tests.kit import Site
from tests.lost_state import state_of_another_life
from tests.lvm.kit import MIB, LvmSite, scribble


@pytest.mark.parametrize("scenario", [state_of_another_life])
def test_on_lvm(lvm_site: Callable[..., LvmSite], scenario: Callable[[Site], None]) -> None:
    site = lvm_site(size=8 * MIB)
    scribble(site.image(), random.Random(0))
    scenario(site)
