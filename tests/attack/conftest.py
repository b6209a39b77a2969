# SPDX-License-Identifier: GPL-2.0-or-later
"""A site with two qubes and a few sessions, and an attacker who owns its backup VM."""

import random
from pathlib import Path

import pytest

from tests.attack.kit import Attacker
from tests.kit import GRAIN, Site, change, fill
from tests.remote.conftest import s3

__all__ = ["s3"]


@pytest.fixture
def attacker(tmp_path: Path) -> Attacker:
    site = Site(tmp_path / "site", volumes=("work/private", "vault/private"))
    for seed, name in enumerate(site.volumes):
        fill(site.image(name), 40 * GRAIN + 5, seed)
    for turn in range(3):
        site.backup()
        for name in site.volumes:
            change(site.image(name), random.Random(turn), resize=False)
    return Attacker(site)
