# SPDX-License-Identifier: GPL-2.0-or-later
"""The delta of real Btrfs and XFS against the bytes, under all that may happen to a file."""

import os
import random
import subprocess
from pathlib import Path

import pytest

from common.durable import closing_fd
from dom0_agent.admin.held import held
from dom0_agent.config import Pool, Volume
from dom0_agent.sources import btrfs, extents, fiemap, snapshot_name
from dom0_agent.sources.reflink import ReflinkSource
from dom0_agent.targets.file import FileReplacement
from tests.kit import GRAIN, fill, punch, some_bytes, truly_changed
from tests.reflink.histories import History, clone_range, dedupe
from tests.reflink.kit import SIZE, named_by_delta, source_in
from wire.status import Code, Refused


def disturb(image: Path, rng: random.Random, older: list[Path]) -> None:
    """One of the things that change a file, or move it about without changing it."""
    size = image.stat().st_size
    at, length = rng.randrange(size), rng.randrange(1, 3 * GRAIN)
    kind = rng.randrange(11)
    fd = os.open(image, os.O_RDWR)
    try:
        if kind < 4:
            os.pwrite(fd, some_bytes(rng, min(length, size - at)), at)
        elif kind == 4:
            os.pwrite(fd, os.pread(fd, length, at), at)  # the same bytes again
        elif kind == 5:
            punch(fd, at, min(length, size - at))
        elif kind in (6, 7):  # clones of ranges, within the file and from an older state of it
            source = os.open(rng.choice([image, *older]), os.O_RDONLY)
            blocks = os.fstat(source).st_size // 4096
            try:
                if blocks > 40:
                    start, count = rng.randrange(blocks - 33), rng.randrange(1, 33)
                    to = rng.randrange(size // 4096)
                    os.fsync(source)
                    clone_range(fd, source, start * 4096, count * 4096, to * 4096)
            except OSError:  # overlapping ranges of one file
                pass
            finally:
                os.close(source)
        elif kind == 8:
            os.truncate(fd, rng.randrange(1, size + 1))
        elif kind == 9:
            os.truncate(fd, size + rng.randrange(4 * GRAIN))
        else:
            os.posix_fallocate(fd, at, length)
        if rng.randrange(3) == 0:
            os.fsync(fd)
    finally:
        os.close(fd)
    if os.stat(image).st_size < 2 * GRAIN:
        os.truncate(image, SIZE)


def shuffle(folder: Path, image: Path, rng: random.Random) -> None:
    """Move blocks about: defragmentation, balance."""
    if rng.randrange(3):
        return
    if os.path.exists("/usr/sbin/xfs_fsr") and _is_xfs(folder):
        subprocess.run(["/usr/sbin/xfs_fsr", image], capture_output=True, check=False)
        return
    subprocess.run(
        ["btrfs", "filesystem", "defragment", "-f", image], capture_output=True, check=False
    )
    if rng.randrange(2):
        subprocess.run(
            ["btrfs", "balance", "start", "--full-balance", folder],
            capture_output=True,
            check=False,
        )


def _is_xfs(folder: Path) -> bool:
    return (
        subprocess.run(
            ["stat", "-f", "-c", "%T", folder], capture_output=True, text=True
        ).stdout.strip()
        == "xfs"
    )


@pytest.mark.parametrize("seed", range(2))
def test_no_change_is_missed_in_any_history(reflink_folder: Path, seed: int) -> None:
    history = History(reflink_folder, seed)
    for _ in range(25):
        history.session()
    assert history.wrong == []


@pytest.mark.parametrize("how", ["reflink copy", "deduplication"])
@pytest.mark.parametrize("root", [True, False])
def test_another_part_of_a_compressed_extent_is_a_change(
    compressed_folder: Path, monkeypatch: pytest.MonkeyPatch, how: str, root: bool
) -> None:
    """The image has the first part of another file's extent, then the second, at the same place."""
    if not root:
        monkeypatch.setattr(btrfs, "readable", lambda fd: False)
    source, image = source_in(compressed_folder), compressed_folder / "work.img"
    other = compressed_folder / "other.img"
    first, second = b"first ".ljust(GRAIN, b"1"), b"second ".ljust(GRAIN, b"2")
    other.write_bytes(first + second)
    image.write_bytes(os.urandom(SIZE))
    os.sync()
    with (
        closing_fd(os.open(image, os.O_RDWR)) as fd,
        closing_fd(os.open(other, os.O_RDONLY)) as there,
    ):
        clone_range(fd, there, 0, GRAIN, 0)
        source.snapshot(1)
        source.snapshot(2)
        list(source.delta(1, 2))
        assert source.unchanged(2) == root
        if how == "reflink copy":
            clone_range(fd, there, GRAIN, GRAIN, 0)
        else:
            os.pwrite(fd, second, 0)
            os.fsync(fd)
            assert dedupe(fd, 0, there, GRAIN, GRAIN) == 0
    assert not source.unchanged(2)
    source.snapshot(3)
    assert 0 in named_by_delta(source, 2, 3)
    if root:
        assert named_by_delta(source, 2, 3) == {0} and named_by_delta(source, 1, 2) == set()


@pytest.mark.parametrize("seed", range(6))
def test_no_change_is_ever_missed(reflink_folder: Path, seed: int) -> None:
    rng, source, image = random.Random(seed), source_in(reflink_folder), reflink_folder / "work.img"
    fill(image, SIZE, seed)
    source.snapshot(1)
    contents, older = image.read_bytes(), []
    for number in range(2, 12):
        for _ in range(rng.randrange(0, 6)):
            disturb(image, rng, older)
        shuffle(reflink_folder, image, rng)
        source.snapshot(number)
        snapshot = reflink_folder / ".sparsebak/work/private" / f"{snapshot_name(number)}.snap"
        now = snapshot.read_bytes()
        assert now == image.read_bytes()
        assert truly_changed(contents, now) <= named_by_delta(source, number - 1, number)
        assert not source.unchanged(number - 1) or now == contents
        for _ in range(rng.randrange(0, 3)):
            disturb(image, rng, [*older, snapshot])
        shuffle(reflink_folder, image, rng)
        assert not source.unchanged(number) or image.read_bytes() == now
        older.append(snapshot)
        contents = now


def test_an_image_in_too_many_pieces_counts_as_changed(
    btrfs_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, image = source_in(btrfs_folder), btrfs_folder / "work.img"
    with open(image, "wb") as file:
        for at in range(0, SIZE, 8192):
            os.pwrite(file.fileno(), b"x", at)
    source.snapshot(1)
    source.snapshot(2)
    assert named_by_delta(source, 1, 2) == set()
    monkeypatch.setattr(extents, "PIECES", 100)
    monkeypatch.setattr(extents, "CHUNK", 50)
    assert named_by_delta(source, 1, 2) == set(range(SIZE // GRAIN)) and not source.unchanged(2)


def test_a_pool_that_is_full_or_read_only_says_so(btrfs_folder: Path) -> None:
    source, image = source_in(btrfs_folder), btrfs_folder / "work.img"
    image.write_bytes(os.urandom(SIZE))
    source.require_room()
    source.snapshot(1)
    with open(btrfs_folder / "filler", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, os.statvfs(btrfs_folder).f_bavail * 4096 * 98 // 100)
        os.fsync(file.fileno())
    with pytest.raises(Refused, match="% full") as caught:
        source.require_room()
    assert caught.value.code == Code.NO_SPACE
    (btrfs_folder / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,ro", btrfs_folder], check=True)
    source.drop_unfinished()
    source.drop(7)
    actions = [source.require_room, lambda: source.snapshot(2), lambda: source.drop(1)]
    for action in (*actions, lambda: FileReplacement(source, 1)):
        with pytest.raises(Refused, match="the pool is read-only"):
            action()


def test_where_the_pool_lies(btrfs_folder: Path, small_disk: Path, tmp_path: Path) -> None:
    """Subvolumes and bind mounts of its own file system are no obstacle, another file system is one
    that is named.
    """
    pool, elsewhere = btrfs_folder / "pool", btrfs_folder / "elsewhere"
    for folder in (pool / "bind", pool / "other", elsewhere):
        folder.mkdir(parents=True)
    subprocess.run(["btrfs", "subvolume", "create", pool / "sub"], check=True, capture_output=True)
    (tmp_path / "link").symlink_to(pool)
    mounts = [(elsewhere, pool / "bind"), (small_disk, pool / "other")]
    for what, where in mounts:
        subprocess.run(["mount", "--bind", what, where], check=True)
    try:
        for name in ("sub", "bind", "other"):
            (pool / name / "a.img").write_bytes(os.urandom(4 * GRAIN))
            at = Pool("p", "reflink", tmp_path / "link")
            source = ReflinkSource(Volume(name, "private", at, f"{name}/a.img"))
            if name == "other":
                with pytest.raises(Refused, match="other file system"):
                    source.snapshot(1)
                continue
            source.snapshot(1)
            with open(pool / name / "a.img", "r+b") as file:
                file.write(b"new")
            source.snapshot(2)
            assert named_by_delta(source, 1, 2) == {0}
            target = FileReplacement(source, GRAIN)
            target.commit()
            assert (pool / name / "a.img").read_bytes() == bytes(GRAIN)
    finally:
        for _, where in mounts:
            subprocess.run(["umount", where], check=True)


def test_little_changed_means_little_named(reflink_folder: Path) -> None:
    source, image = source_in(reflink_folder), reflink_folder / "work.img"
    image.write_bytes(os.urandom(SIZE))
    source.snapshot(1)
    source.snapshot(2)
    assert named_by_delta(source, 1, 2) == set()
    with open(image, "r+b") as file:
        for grain in (3, 17, 40):
            file.seek(grain * GRAIN + 100)
            file.write(os.urandom(1000))
    source.snapshot(3)
    assert named_by_delta(source, 2, 3) == {3, 17, 40}


def test_a_snapshot_keeps_what_was_there(reflink_folder: Path) -> None:
    source, image = source_in(reflink_folder), reflink_folder / "work.img"
    fill(image, SIZE, 1)
    before = image.read_bytes()
    source.snapshot(1)
    fill(image, SIZE, 2)
    fd = source.open(1)
    assert os.pread(fd, SIZE, 0) == before
    os.close(fd)
    assert source.snapshots() == {1} and source.size(1) == SIZE
    source.drop(1)
    source.drop(1)
    assert source.snapshots() == set()


def test_a_file_in_thousands_of_pieces(btrfs_folder: Path) -> None:
    source, image = source_in(btrfs_folder), btrfs_folder / "work.img"
    with open(image, "wb") as file:
        file.truncate(SIZE * 8)
        for at in range(0, SIZE * 8, 8192):  # every other block: one extent each
            os.pwrite(file.fileno(), b"x" * 4096, at)
    source.snapshot(1)
    with closing_fd(source.open(1)) as fd:
        for read in (btrfs.rows, fiemap.rows):
            assert sum(map(len, read(fd, SIZE * 8))) == SIZE * 8 // 8192
    with open(image, "r+b") as file:
        os.pwrite(file.fileno(), b"y", 5 * GRAIN + 8192)
    source.snapshot(2)
    assert named_by_delta(source, 1, 2) == {5}


def test_a_snapshot_holds_what_was_overwritten_since(reflink_folder: Path) -> None:
    source, image = source_in(reflink_folder), reflink_folder / "work.img"
    image.write_bytes(os.urandom(SIZE))
    source.snapshot(1)
    assert held(source) == 0
    with open(image, "r+b") as file:
        # All of it: Btrfs keeps an extent whole as long as any of it is used.
        file.write(os.urandom(SIZE))
        os.fsync(file.fileno())
    subprocess.run(["sync", "-f", image], check=True)
    assert held(source) == SIZE
