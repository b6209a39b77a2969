# SPDX-License-Identifier: GPL-2.0-or-later
"""Weeks of rotations: random writes, random deaths, and in the end a backup that is exact. Some
hundreds in ``make test``, thousands in ``make crash``.
"""

import os
import random
from pathlib import Path

from tests.kit import GRAIN, Site, fill, in_child
from tests.steps import EVERYTHING, Counter

ROTATIONS = 2000 if os.environ.get("SPARSEBAK_LONG") else 400
SIZE = 64 * GRAIN


def test_many_rotations_with_random_deaths(btrfs_folder: Path) -> None:
    site, rng = Site(btrfs_folder / "site", driver="reflink"), random.Random(2000)
    patient = site.root / "patient"
    site.add_archive("patient", patient)
    fill(site.image(), SIZE, 1)
    site.backup()
    site.backup(folder=patient)  # and not again before the end
    fd = os.open(site.image(), os.O_RDWR)
    for turn in range(ROTATIONS):
        for _ in range(rng.randrange(3)):
            os.pwrite(fd, rng.randbytes(rng.randrange(1, 9000)), rng.randrange(SIZE - 9000))
        if rng.randrange(6) == 0:

            def dying(fatal: int = rng.randrange(1, 30)) -> None:
                Counter(fatal).install(EVERYTHING)
                site.monitor()

            in_child(dying)
        else:
            site.monitor()
        if turn % 100 == 99:
            site.backup()
            assert list(site.images().values())[-1] == site.contents()
        assert len(site.snapshots()) <= 3
    os.close(fd)
    site.backup(folder=patient)
    assert list(site.images(folder=patient).values())[-1] == site.contents()
    assert len(site.snapshots()) == 1
    site.verify_all()
