# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole runs on a real thin pool: what is restored is what was there, for every session."""

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dom0_agent.admin import cli
from tests import loading
from tests.lvm.kit import MIB, LvmSite, scribble

Make = Callable[..., LvmSite]


@pytest.mark.parametrize("pool", ["vm-pool", "pool-2m"])
def test_every_session_comes_back(lvm_site: Make, pool: str) -> None:
    site, rng, contents = lvm_site(pool=pool), random.Random(pool), []
    for size in (12, 12, 16, 8):
        if contents and size * MIB != len(contents[-1]):
            site.group.resize(site.lv(), size * MIB)
        scribble(site.image(), rng)
        site.backup()
        contents.append(site.contents())
    assert list(site.images().values()) == contents
    site.restore(2)
    assert site.contents() == contents[2]
    site.backup()
    assert list(site.images().values())[-1] == contents[2]
    assert site.scrubbed() == [] and len(site.snapshots()) == 1


@pytest.mark.parametrize(("pool", "sizes"), [("pool-512k", (64, 4096)), ("pool-2m", (128, 1024))])
def test_one_volume_feeds_archives_of_every_chunk_size(
    lvm_site: Make, pool: str, sizes: tuple[int, ...]
) -> None:
    """Each archive has a bitmap of its own; the base snapshot is shared."""
    site, rng = lvm_site(pool=pool), random.Random(5)
    folders = [site.root / f"archive-{size}" for size in sizes]
    for size, folder in zip(sizes, folders, strict=True):
        site.add_archive(f"k{size}", folder, chunk_size=size << 10)
    contents: list[list[bytes]] = [[] for _ in sizes]
    for turn in range(3):
        scribble(site.image(), rng)
        chosen = turn % len(sizes)
        report = site.backup(folder=folders[chosen])
        contents[chosen].append(site.contents())
        if turn >= len(sizes):
            assert report.done[0].changed < 12 * MIB  # incremental for each of them
    for folder, expected in zip(folders, contents, strict=True):
        assert list(site.images(folder=folder).values()) == expected
    assert len(site.snapshots()) == 1


def test_volumes_that_come_and_go(lvm_site: Make) -> None:
    name = "my-old--work-2/private"
    site, rng = lvm_site(name), random.Random(9)
    scribble(site.image(name), rng)
    site.backup()
    site.group.lvm("lvremove", "--force", f"{site.group.name}/{site.lv(name)}")
    site.group.volume("vm-pool", site.lv(name), 12 * MIB)  # another volume of the same name
    scribble(site.image(name), rng)
    site.backup()
    assert list(site.images(name).values())[-1] == site.contents(name)
    # Removed by somebody's hand.
    site.group.lvm("lvremove", "--force", f"{site.group.name}/{site.snapshots(name)[0]}")
    scribble(site.image(name), rng)
    site.backup()
    before = site.contents(name)
    assert list(site.images(name).values())[-1] == before
    site.group.lvm("lvremove", "--force", f"{site.group.name}/{site.lv(name)}")
    site.restore(name=name)  # into a volume that is not there any more
    assert site.contents(name) == before


def test_nothing_is_forgotten_of_a_group_that_is_away(
    lvm_site: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    site = lvm_site()
    site.backup()
    words, group = ["--config", str(site.config), "forget", "work/private", "--yes"], site.group
    group.lvm("vgrename", group.name, "elsewhere")
    try:
        assert cli.main(words) == 1
        assert "pool p is not there" in capsys.readouterr().err
    finally:
        group.lvm("vgrename", "elsewhere", group.name)
    assert len(site.snapshots()) == 1
    assert cli.main(words) == 0 and site.snapshots() == []


def test_backups_of_a_volume_that_is_written_to(lvm_site: Make) -> None:
    site, stop = lvm_site(), threading.Event()

    def write() -> None:
        rng = random.Random(1)
        fd = os.open(site.image(), os.O_RDWR | os.O_SYNC)
        while not stop.is_set():
            os.pwrite(fd, rng.randbytes(5000), rng.randrange(12 * MIB - 5000))
            time.sleep(0.01)
        os.close(fd)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        site.backup()
        site.monitor()
    finally:
        stop.set()
        writer.join()
    site.backup()
    assert list(site.images().values())[-1] == site.contents()
    site.verify_all()


def test_a_volume_in_use_is_not_restored(lvm_site: Make) -> None:
    from backup_vm.agent.call import RefusedError

    site = lvm_site()
    scribble(site.image(), random.Random(3))
    site.backup()
    scribble(site.image(), random.Random(4))
    before = site.contents()
    fd = os.open(site.image(), os.O_RDONLY)
    with pytest.raises(RefusedError, match="busy"):
        site.restore()
    os.close(fd)
    assert site.contents() == before and len(site.snapshots()) == 1


def test_a_call_loads_nothing_of_another_machine(
    lvm_site: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading.check(lvm_site(), "elsewhere, thin pool", tmp_path / "loaded", monkeypatch)
