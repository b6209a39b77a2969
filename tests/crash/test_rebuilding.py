# SPDX-License-Identifier: GPL-2.0-or-later
"""A catalog that is made again in parts, killed at each statement of its databases: it is the same
when the next run has made it, and nothing is left over.
"""

import os
import random
from pathlib import Path

import pytest

from backup_vm.archive import gathering, pack_writer
from backup_vm.archive.storage.local import LocalStorage
from tests.crash.test_crash import copies
from tests.kit import GRAIN, Site, in_child
from tests.steps import CALLS, DIED, SQL, Counter

LONG = os.environ.get("SPARSEBAK_LONG") == "1"
SAMPLE = 4
"""Deaths in a short run."""


@pytest.fixture
def built(quick_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Two sessions in some packs of three chunks, without a catalog."""
    monkeypatch.setattr(LocalStorage, "pack_size", 3 * GRAIN)
    monkeypatch.setattr(pack_writer, "RECORD_SECONDS", 0)
    monkeypatch.setattr(gathering, "AT_ONCE", 6)
    site = Site(quick_folder / "site")
    site.image().write_bytes(random.Random(1).randbytes(12 * GRAIN))
    site.backup()
    site.disturb(random.Random(2))
    site.backup()
    return site


def rebuild(site: Site) -> None:
    with site.open(True) as archive:
        archive.catalog.count()


def test_a_rebuild_in_parts(built: Site) -> None:
    with built.open() as archive:
        whole = archive.catalog.digest()
    images, before = built.images(), {path.name for path in built.archive.iterdir()}
    (built.archive / "catalog.sqlite").unlink()
    fresh, told = copies(built), built.root.parent / "steps"

    def dying(fatal: int, site: Site) -> int:
        def die() -> None:
            counter = Counter(fatal)
            counter.install((*CALLS, SQL))
            rebuild(site)
            told.write_text(str(counter.done))

        return in_child(die)

    assert dying(0, next(fresh)) == 0
    most = int(told.read_text())
    spread = sorted({1 + at * (most - 1) // (SAMPLE - 1) for at in range(SAMPLE)})
    for fatal in range(1, most + 1) if LONG else spread:
        site = next(fresh)
        assert dying(fatal, site) == DIED, fatal
        assert in_child(lambda site=site: same(site, whole, images)) == 0, fatal
        assert {path.name for path in site.archive.iterdir()} <= before, fatal


def same(site: Site, whole: bytes, images: dict[str, bytes]) -> None:
    rebuild(site)
    with site.open() as archive:
        assert archive.catalog.digest() == whole and not archive.warnings
    assert site.images() == images and site.scrubbed() == []
