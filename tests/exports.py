# SPDX-License-Identifier: GPL-2.0-or-later
"""An archive of four sessions to be exported, and what is done to it."""

import random
from pathlib import Path

from backup_vm.archive.prune import prune
from tests.kit import GRAIN, Site, change, fill


def with_sessions(site: Site) -> Site:
    """Four sessions, the volume's size among what changes."""
    rng = random.Random(4)
    fill(site.image(), 20 * GRAIN + 99)
    for _ in range(4):
        site.backup()
        change(site.image(), rng)
    return site


def images(site: Site, folder: Path) -> dict[str, bytes]:
    return site.images(folder=folder)


def drop(site: Site, folder: Path, *at: int) -> None:
    with site.open(True, folder) as archive:
        (series,) = archive.sessions().values()
        prune(archive, [series[number] for number in at])
