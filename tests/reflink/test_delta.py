"""The delta of real Btrfs and XFS against the bytes, under all that may happen to a file."""

import fcntl
import mmap
import os
import random
import struct
import subprocess
from pathlib import Path

import pytest

from dom0_agent.config import Pool, Volume
from dom0_agent.sources import fiemap, snapshot_name
from dom0_agent.sources.reflink import ReflinkSource
from tests.kit import GRAIN, fill, punch, some_bytes, truly_changed
from wire.status import Refused

SIZE = 64 * GRAIN
FICLONERANGE = 0x4020940D


def clone_range(fd: int, source: int, at: int, length: int, to: int) -> None:
    fcntl.ioctl(fd, FICLONERANGE, struct.pack("=qQQQ", source, at, length, to))


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
            os.pwrite(fd, os.pread(fd, length, at), at)  # the same bytes anew
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


def named_by_delta(source: ReflinkSource, old: int, new: int) -> set[int]:
    ranges = list(source.delta(old, new))
    assert all(a < b for a, b in ranges) and all(
        x[1] < y[0] for x, y in zip(ranges, ranges[1:], strict=False)
    )
    return {
        grain for start, end in ranges for grain in range(start // GRAIN, (end - 1) // GRAIN + 1)
    }


def source_in(folder: Path) -> ReflinkSource:
    return ReflinkSource(Volume("work", "private", Pool("p", "reflink", folder), "work.img"))


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


def test_a_base_that_moves_is_read_again_then_given_up(
    btrfs_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, image = source_in(btrfs_folder), btrfs_folder / "work.img"
    image.write_bytes(os.urandom(SIZE))
    source.snapshot(1)
    source.snapshot(2)
    real, calls = fiemap.records, 0

    def moving(fd: int, size: int):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        for words in real(fd, size):
            words[1] += calls if calls < until else 0
            yield words

    monkeypatch.setattr(fiemap, "records", moving)
    until = 9
    assert named_by_delta(source, 1, 2) == set() and calls >= 9
    until = 1 << 30
    assert named_by_delta(source, 1, 2) == set(range(64))


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
    fd = source.open(1)
    assert len(fiemap.Map(fiemap.records(fd, SIZE * 8)).flags) == SIZE * 8 // 8192
    os.close(fd)
    with open(image, "r+b") as file:
        os.pwrite(file.fileno(), b"y", 5 * GRAIN + 8192)
    source.snapshot(2)
    assert named_by_delta(source, 1, 2) == {5}


def test_a_snapshot_holds_what_was_overwritten_since(reflink_folder: Path) -> None:
    source, image = source_in(reflink_folder), reflink_folder / "work.img"
    image.write_bytes(os.urandom(SIZE))
    source.snapshot(1)
    assert source.held() == 0
    with open(image, "r+b") as file:
        file.write(
            os.urandom(SIZE)
        )  # all of it: Btrfs keeps an extent whole as long as any of it is used
        os.fsync(file.fileno())
    subprocess.run(["sync", "-f", image], check=True)
    assert source.held() == SIZE
