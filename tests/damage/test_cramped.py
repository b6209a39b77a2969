# SPDX-License-Identifier: GPL-2.0-or-later
"""A catalog that is moved to another disk while a run makes room, because its own is full: what
becomes of it. places/test_full.py has the disks that are full.
"""

import os
import random
import shutil
from typing import IO

import pytest

from backup_vm.archive import catalog_file, cramped
from backup_vm.archive.catalog import ChunkCatalog
from backup_vm.archive.opening import open_archive
from backup_vm.archive.prune import prune
from tests.kit import GRAIN, Site, change, fill


class CutOff(BaseException):
    """The end of a run."""


@pytest.fixture
def full(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """An archive with two sessions, on a disk that has no room for a prune to begin."""
    fill(site.image(), 20 * GRAIN)
    for seed in range(2):
        site.backup()
        change(site.image(), random.Random(seed), resize=False)
    monkeypatch.setattr(cramped, "cramped", lambda storage: True)
    return site


def pruned(site: Site, command: str = "prune") -> list[str]:
    """The warnings of a prune of all but the newest session."""
    with open_archive(site.archive, True, command) as archive:
        ((*old, _),) = archive.sessions().values()
        prune(archive, old)
        there = (site.archive / catalog_file.NAME).exists()
        assert there == (not archive.cramped)
        return archive.warnings


def test_it_is_put_back(full: Site) -> None:
    newest = list(full.images().values())[-1]
    with pytest.raises(CutOff), open_archive(full.archive, True, "prune") as archive:
        assert archive.cramped
        raise CutOff
    assert pruned(full) == [] and pruned(full, "backup") == []
    assert list(full.images().values()) == [newest] and full.scrubbed() == []


@pytest.mark.parametrize("where", ["no folder", "no room"])
def test_it_stays_where_there_is_no_other_disk(
    full: Site, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if where == "no folder":
        monkeypatch.setattr(catalog_file, "folder_aside", fails)
    else:
        monkeypatch.setattr(catalog_file, "copy", fails)
    assert pruned(full) == [] and len(full.images()) == 1


def test_what_a_power_cut_leaves_of_it_is_not_believed(
    full: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its size, and what was in those blocks before: an older catalog."""
    stale = (full.archive / catalog_file.NAME).read_bytes()

    def cut_off(source: IO[bytes], target: IO[bytes], length: int = 0) -> None:
        target.write(stale)
        target.flush()
        raise CutOff

    with pytest.raises(CutOff), open_archive(full.archive, True, "prune") as archive:
        ((*old, _),) = archive.sessions().values()
        prune(archive, old)
        monkeypatch.setattr(shutil, "copyfileobj", cut_off)
    monkeypatch.undo()
    (warning,) = pruned(full, "backup")
    assert "was missing; it has been rebuilt" in warning
    assert not list(full.archive.glob("*.tmp")) and full.scrubbed() == []


def test_one_that_a_rebuild_left_is_moved(full: Site) -> None:
    """It knows what the one before knew: see remembered.py."""
    path = full.archive / catalog_file.NAME
    catalog = ChunkCatalog(path, alone=True)
    catalog.set_meta("waiting", "12 34")
    catalog.close()
    os.rename(path, f"{path}.tmp")
    assert pruned(full) == []
    catalog = ChunkCatalog(path, alone=True)
    assert catalog.meta("waiting") == "12 34"
    catalog.close()
