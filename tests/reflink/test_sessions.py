# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole runs on real Btrfs and XFS: what is restored is what was there, for every session."""

import os
import random
import threading
from pathlib import Path

import pytest

from backup_vm.archive.prune import prune
from dom0_agent.sources import reflink
from tests import loading
from tests.kit import GRAIN, Site, change, fill

SIZE = 50 * GRAIN + 999


@pytest.mark.parametrize("seed", range(3))
def test_every_session_comes_back(reflink_site: Site, seed: int) -> None:
    site, rng, contents = reflink_site, random.Random(seed), []
    fill(site.image(), SIZE, seed)
    for _ in range(6):
        site.backup()
        contents.append(site.image().read_bytes())
        change(site.image(), rng)
    assert list(site.images().values()) == contents
    with site.open(True) as archive:
        (series,) = archive.sessions().values()
        prune(archive, [series[0], series[2], series[3]])
    assert list(site.images().values()) == [contents[at] for at in (1, 4, 5)]
    site.restore(1)
    assert site.image().read_bytes() == contents[4]
    site.backup()
    assert list(site.images().values())[-1] == contents[4]
    assert site.scrubbed() == [] and len(site.snapshots()) == 1


def test_a_snapshot_costs_no_space_and_holes_are_not_read(reflink_site: Site) -> None:
    site = reflink_site
    with open(site.image(), "wb") as file:
        file.truncate(1 << 40)  # a terabyte of nothing, with a little in it
        for at in (0, 1 << 30, (1 << 40) - GRAIN):
            os.pwrite(file.fileno(), os.urandom(GRAIN), at)
    done = site.backup().done[0]
    assert done.changed == 3 * GRAIN
    with site.open() as archive:
        (series,) = archive.sessions().values()
        image = archive.image(series, series[0])
        assert image.chunks == (1 << 40) // GRAIN and series[0].count == 3
    site.image().unlink()


def test_backups_while_the_volume_is_written_to(reflink_site: Site) -> None:
    """Whatever the moment of a snapshot, what is stored is what the snapshot held: every session
    proves authentic.
    """
    site, stop = reflink_site, threading.Event()
    fill(site.image(), SIZE)

    def write() -> None:
        rng = random.Random(1)
        with open(site.image(), "r+b", buffering=0) as file:
            while not stop.is_set():
                os.pwrite(file.fileno(), rng.randbytes(5000), rng.randrange(SIZE - 5000))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(6):
            site.backup()
    finally:
        stop.set()
        writer.join()
    site.backup()
    assert list(site.images().values())[-1] == site.image().read_bytes()
    site.verify_all()


def test_a_torn_image_costs_no_more_than_its_size(
    reflink_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each hole is asked for while the volume's lock is held, and a qube makes as many as
    it likes.
    """
    site, asked, lseek = reflink_site, 0, os.lseek

    def count(fd: int, at: int, how: int) -> int:
        nonlocal asked
        asked += 1
        return lseek(fd, at, how)

    with open(site.image(), "wb") as file:
        for at in range(0, 40 * GRAIN, 8192):
            os.pwrite(file.fileno(), os.urandom(4096), at)
        file.truncate(60 * GRAIN)
    contents = [site.contents()]
    monkeypatch.setattr(os, "lseek", count)
    site.backup()
    assert asked < 300  # for the offer, and again for reading; it is torn into 320 pieces
    monkeypatch.setattr(reflink, "HOLES", 3)
    site.add_archive("second", site.root / "second")
    site.backup(folder=site.root / "second")
    change(site.image(), random.Random(1))
    contents.append(site.contents())
    site.backup()
    assert list(site.images().values()) == contents
    assert list(site.images(folder=site.root / "second").values()) == contents[:1]


def test_a_call_loads_nothing_of_another_machine(
    btrfs_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(btrfs_folder / "site", driver="reflink")
    fill(site.image(), SIZE)
    loading.check(site, "elsewhere, Btrfs or XFS", tmp_path / "loaded", monkeypatch)
