# SPDX-License-Identifier: GPL-2.0-or-later
"""What did not change is known without a snapshot."""

import mmap
import os
import subprocess
import time
from pathlib import Path

import pytest

from common.durable import closing_fd
from dom0_agent.sources import extents
from dom0_agent.sources.flags import flags
from dom0_agent.targets.file import FileReplacement
from tests.kit import GRAIN
from tests.reflink.kit import SIZE, named_by_delta, source_in
from wire.status import Refused


def test_what_did_not_change_is_known_without_a_snapshot(reflink_folder: Path) -> None:
    source, image = source_in(reflink_folder), reflink_folder / "work.img"
    image.write_bytes(os.urandom(SIZE))
    source.snapshot(1)
    assert not source.unchanged(1), "its map was not looked at when it was new"
    source.snapshot(2)
    assert named_by_delta(source, 1, 2) == set() and source.unchanged(2)
    with open(image, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[5 * GRAIN] ^= 1  # not even brought to disk
        assert not source.unchanged(2)
        mapped[5 * GRAIN] ^= 1
    source.snapshot(3)
    assert 5 in named_by_delta(source, 2, 3) and source.unchanged(3)
    os.truncate(image, SIZE + 4096)
    assert not source.unchanged(3)
    os.truncate(image, SIZE)
    image.unlink()
    with pytest.raises(Refused):
        source.unchanged(3)


def test_an_image_that_rests_is_known_by_its_time(
    reflink_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, image = source_in(reflink_folder), reflink_folder / "work.img"
    image.write_bytes(os.urandom(SIZE))
    source.snapshot(1)
    time.sleep(1.1)
    source.snapshot(2)
    monkeypatch.setattr(extents, "compare", None)  # no map is read
    monkeypatch.setattr("dom0_agent.sources.reflink.still_there", lambda *_: False)
    assert not source.unchanged(1), "it was written just before that snapshot"
    assert source.unchanged(2)
    os.utime(image, ns=(0, 0))
    assert not source.unchanged(2)
    source.snapshot(3)
    assert not source.unchanged(3), "a change in the same tick could not be noticed"
    os.replace(image, image.with_name("old"))
    image.write_bytes(image.with_name("old").read_bytes())
    assert not source.unchanged(2)


@pytest.mark.parametrize("nocow", ["image", "pool", "image in a compressed pool"])
def test_images_with_and_without_copy_on_write(btrfs_folder: Path, nocow: str) -> None:
    source, image = source_in(btrfs_folder), btrfs_folder / "work.img"
    if nocow == "pool":
        image.touch()
        (btrfs_folder / ".sparsebak").mkdir()
        subprocess.run(["chattr", "+C", btrfs_folder / ".sparsebak"], check=True)
    else:
        image.touch()
        subprocess.run(["chattr", "+C", image], check=True)
        if nocow != "image":
            (btrfs_folder / ".sparsebak").mkdir()
            for folder in (btrfs_folder, btrfs_folder / ".sparsebak"):
                property_ = ["btrfs", "property", "set", folder, "compression", "zstd"]
                subprocess.run(property_, check=True)
    image.write_bytes(os.urandom(SIZE))
    source.snapshot(1)
    with open(image, "r+b") as file:
        os.pwrite(file.fileno(), b"x", 5 * GRAIN)
    assert not source.unchanged(1)
    source.snapshot(2)
    assert named_by_delta(source, 1, 2) == {5}
    with closing_fd(source.open(2)) as fd:
        assert os.pread(fd, SIZE, 0) == image.read_bytes()
    target = FileReplacement(source, SIZE)
    target.write(0, [b"restored"])
    target.commit()
    with closing_fd(os.open(image, os.O_RDONLY)) as fd:
        assert bool(flags(fd) & 0x00800000) == (nocow != "pool")
