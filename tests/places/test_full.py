# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk that is full to its last byte: what makes room begins all the same, and leaves every
session that stays as it was.
"""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backup_vm.archive import reserve
from tests.commands import Commands
from tests.conftest import FILE_SYSTEMS, mounted
from tests.full_disk import BALLAST, empty, fill
from tests.kit import GRAIN, Site

KEEP = ("prune", "--keep-last", "1", "--max-removed", "100%")
CHUNKS = 60
DISKS = {
    "ext4": (48 << 20, ["mkfs.ext4", "-q"], "loop"),
    "xfs": (300 << 20, *FILE_SYSTEMS["xfs"]),
    "btrfs": (120 << 20, *FILE_SYSTEMS["btrfs"]),
}


@pytest.fixture(params=list(DISKS))
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    size, make, options = DISKS[request.param]
    yield from mounted(tmp_path / "full.img", tmp_path / "full", size, make, options)


@pytest.fixture
def full(disk: Path, tmp_path: Path, commands_for: Callable[[Site], Commands]) -> Commands:
    """An archive with four sessions of two volumes on a disk that is full."""
    site = Site(tmp_path / "site", volumes=("work/private", "other/private"))
    shutil.move(site.archive, disk / "archive")
    site.archive = disk / "archive"
    for seed in range(4):
        for name in site.volumes:
            data = random.Random(f"{name}{seed}").randbytes(
                CHUNKS * GRAIN // (1 if not seed else 4)
            )
            with open(site.image(name), "r+b") as file:
                file.seek(seed * 5 * GRAIN)
                file.write(data)
        site.backup()
    fill(disk)
    return commands_for(site)


def test_prune_scrub_and_delete_work(full: Commands) -> None:
    site = full.site
    newest = {name: list(site.images(name).values())[-1] for name in site.volumes}
    before = site.images()
    for name in site.volumes:
        site.image(name).write_bytes(os.urandom(2 * CHUNKS * GRAIN))
    assert "is full" in full.run("backup", "--ignore-free-space", expect=1)[1]
    assert site.images() == before
    assert (site.archive / reserve.NAME).stat().st_blocks > 0, "no backup gets it"
    full.run("scrub")
    assert (site.archive / reserve.NAME).stat().st_blocks > 0, "a scrub leaves it to the next prune"
    said = full.run("-v", *KEEP, "--yes")[0]
    assert "6 sessions removed" in said
    assert {name: list(site.images(name).values()) for name in site.volumes} == {
        name: [image] for name, image in newest.items()
    }
    assert (site.archive / reserve.NAME).stat().st_blocks > 0, "there is room for it again"
    assert site.scrubbed() == []
    full.run("delete", "other", "--yes", "--passphrase-file", str(full.passphrase))
    full.run("scrub")
    assert list(site.images().values()) == [newest["work/private"]]


def test_without_that_room_nothing_is_lost(full: Commands) -> None:
    """As where the disk never had enough for it: all or nothing is removed."""
    site = full.site
    (site.archive / reserve.NAME).rename(site.archive.parent / BALLAST / "reserve")
    before = {name: site.images(name) for name in site.volumes}
    code, _, error = full.outcome(*KEEP, "--yes")
    if code:  # some file systems keep enough by themselves
        assert "full" in error or "No space left" in error
        assert "make room" in error
        assert {name: site.images(name) for name in site.volumes} == before
    empty(site.archive.parent)
    full.run(*KEEP, "--yes")
    for name, images in before.items():
        assert list(site.images(name).values()) == list(images.values())[-1:]
    full.run("scrub")


def test_delete_works_first(full: Commands) -> None:
    site = full.site
    kept = site.images("work/private")
    full.run("delete", "other", "--yes", "--passphrase-file", str(full.passphrase))
    assert site.images("work/private") == kept and site.images("other/private") == {}
    site.backup("work/private")
    assert site.scrubbed() == []
