# SPDX-License-Identifier: GPL-2.0-or-later
"""What did not change is known without a snapshot."""

import mmap
import os
import subprocess
import time
from pathlib import Path

import pytest

from common.durable import closing_fd
from dom0_agent.config import Pool, Volume
from dom0_agent.sources import btrfs_since, extents, reflink
from dom0_agent.sources.flags import flags
from dom0_agent.sources.reflink import ReflinkSource
from dom0_agent.targets.file import FileReplacement
from tests.conftest import FILE_SYSTEMS, mounted
from tests.kit import GRAIN
from tests.reflink.histories import PUNCH, History, fallocate
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
    monkeypatch.setattr(btrfs_since, "still_as_cloned", lambda *_: False)
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


@pytest.fixture
def by_what_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """No map says that an image is unchanged, nor its time: what was written since has to."""
    monkeypatch.setattr(reflink, "_TICK", 20_000_000)
    monkeypatch.setattr(reflink, "still_there", lambda *_: False)


def rest(image: Path) -> None:
    """Have another time of change than at the snapshot, and none of just now."""
    os.utime(image)
    time.sleep(0.03)


def torn(image: Path, pieces: int) -> None:
    """An image in so many pieces, on every other block."""
    with open(image, "wb") as file:
        file.truncate(pieces * 8192)
        for at in range(0, pieces * 8192, 8192):
            os.pwrite(file.fileno(), at.to_bytes(8, "little") * 512, at)


@pytest.mark.usefixtures("by_what_was_written")
@pytest.mark.parametrize("seed", range(3))
def test_no_history_is_called_unchanged_that_is_not(btrfs_folder: Path, seed: int) -> None:
    history = History(btrfs_folder, seed, 0.03)
    for _ in range(20):
        history.session()
    assert history.wrong == []


@pytest.mark.usefixtures("by_what_was_written")
def test_of_a_torn_image_little_is_read(
    btrfs_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, image = source_in(btrfs_folder), btrfs_folder / "work.img"
    torn(image, 4000)
    os.sync()
    with open(image, "r+b") as file:
        os.pwrite(file.fileno(), b"x", 1 << 20)
    source.snapshot(1)
    rest(image)
    read = list[int]()
    written = btrfs_since._written

    def counted(fd: int, since: int) -> list[tuple[int, bytes]] | None:
        found = written(fd, since)
        read.append(len(found or ()))
        return found

    monkeypatch.setattr(btrfs_since, "_written", counted)
    assert source.unchanged(1)
    assert read and max(read) < 1000
    with open(image, "r+b") as file:
        os.pwrite(file.fileno(), b"y", 1 << 20)
    rest(image)
    assert not source.unchanged(1)
    source.snapshot(2)
    rest(image)
    assert source.unchanged(2) and named_by_delta(source, 1, 2) == {16}


@pytest.mark.usefixtures("by_what_was_written")
@pytest.mark.parametrize("also", ["nothing", "as much written elsewhere", "as much allocated"])
def test_what_is_gone_with_its_leaves_is_a_change(btrfs_folder: Path, also: str) -> None:
    """No leaf is left that would tell of it."""
    source, image = source_in(btrfs_folder), btrfs_folder / "work.img"
    torn(image, 4000)
    os.sync()
    source.snapshot(1)
    with open(image, "r+b") as file:
        fallocate(file.fileno(), PUNCH, 8 << 20, 8 << 20)
        if also != "nothing":
            fallocate(file.fileno(), 0, 8 << 20, 4 << 20)
        if also == "as much written elsewhere":
            os.pwrite(file.fileno(), b"z" * (4 << 20), 8 << 20)
    rest(image)
    assert not source.unchanged(1)


@pytest.mark.usefixtures("by_what_was_written")
def test_a_subvolume_of_before_is_a_change(btrfs_folder: Path) -> None:
    """An older state of the image in its place: the same number, nothing written since."""
    source = ReflinkSource(
        Volume("work", "private", Pool("p", "reflink", btrfs_folder), "sub/work.img")
    )
    sub, image = btrfs_folder / "sub", btrfs_folder / "sub/work.img"
    subprocess.run(["btrfs", "subvolume", "create", sub], check=True, capture_output=True)
    image.write_bytes(os.urandom(SIZE))
    before = ["btrfs", "subvolume", "snapshot", sub, btrfs_folder / "before"]
    subprocess.run(before, check=True, capture_output=True)
    with open(image, "r+b") as file:
        file.write(b"later")
    os.sync()
    source.snapshot(1)
    rest(image)
    assert source.unchanged(1)
    sub.rename(btrfs_folder / "after")
    (btrfs_folder / "before").rename(sub)
    rest(image)
    assert not source.unchanged(1)


@pytest.mark.usefixtures("by_what_was_written")
def test_what_was_noted_on_another_disk_says_nothing(btrfs_folder: Path, tmp_path: Path) -> None:
    """The pool was copied there with all attributes, and its files have the same numbers; of what
    is written there every transaction is an early one.
    """
    image = btrfs_folder / "work.img"
    image.write_bytes(os.urandom(SIZE))
    source_in(btrfs_folder).snapshot(1)
    disk = tmp_path / "new.img", tmp_path / "new", 400 << 20
    for new in mounted(*disk, *FILE_SYSTEMS["btrfs"]):
        subprocess.run(["cp", "-a", f"{btrfs_folder}/.", new], check=True)
        source, image = source_in(new), new / "work.img"
        with closing_fd(os.open(image, os.O_RDONLY)) as fd:
            here = btrfs_since.Mark.of(fd, 1 << 20, os.fstat(fd).st_blocks)
        clone = source._path(1)
        noted = btrfs_since.Mark.parsed(os.getxattr(clone, reflink._MARK))
        assert noted is not None
        os.setxattr(clone, reflink._MARK, here._replace(system=noted.system).text())
        with open(image, "r+b") as file:
            os.pwrite(file.fileno(), b"x", 5 * GRAIN)
        rest(image)
        assert not source.unchanged(1)


@pytest.mark.usefixtures("by_what_was_written")
def test_what_is_written_in_place_is_a_change(btrfs_folder: Path) -> None:
    """Without copy on write, after the clone was moved away, no leaf is written."""
    source, image = source_in(btrfs_folder), btrfs_folder / "work.img"
    image.touch()
    subprocess.run(["chattr", "+C", image], check=True)
    torn(image, 4000)
    os.sync()
    source.snapshot(1)
    with open(source._path(1), "r+b") as clone:  # as a defragmentation would
        for at in range(1000 * 8192, 3000 * 8192, 8192):
            os.pwrite(clone.fileno(), os.pread(clone.fileno(), 4096, at), at)
    os.sync()
    with open(image, "r+b") as file:
        os.pwrite(file.fileno(), b"new", 2000 * 8192)
    rest(image)
    assert not source.unchanged(1)


def test_a_mark_reads_back_or_is_none() -> None:
    mark = btrfs_since.Mark((1 << 64) - 1, 5, 257, 7, 12, 1 << 40)
    assert btrfs_since.Mark.parsed(mark.text()) == mark
    for text in (b"", b"9 5 257 7 12", b"9 5 257 7 12 x", b"9 5 257 7 12 -1", b"1 2 3 4 5 6 7"):
        assert btrfs_since.Mark.parsed(text) is None
