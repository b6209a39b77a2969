# SPDX-License-Identifier: GPL-2.0-or-later
"""An archive on disks that fail, are full, or can do less than others."""

import os
import random
import shutil
from pathlib import Path

import pytest

from backup_vm.archive.storage.local import LocalStorage
from backup_vm.errors import DamagedError, SparsebakError
from tests.conftest import fault_system
from tests.faultfs import Fault, FaultFS

NAME = "packs/ab/" + "ab" * 16 + ".pack"
SESSION = f"volumes/{'00' * 16}/{1:010d}-{'01' * 16}.session"


def test_one_file_that_cannot_be_read_is_damage_and_no_other_is(faultfs: FaultFS) -> None:
    storage = LocalStorage(faultfs.path / "archive")
    storage.prepare()
    other = NAME.replace("ab", "cd")
    for name in (NAME, other):
        storage.write(name, bytes(200_000))
    faultfs.fail(
        Fault("read", "EIO", path=f"archive/{NAME}"), Fault("open", "EIO", path="*cd.pack")
    )
    with pytest.raises(DamagedError, match="cannot be read: Input/output error"):
        storage.read(NAME)
    with pytest.raises(DamagedError, match="cannot be read: Input/output error"):
        storage.reader(NAME).read(0, 10)
    with pytest.raises(DamagedError, match=r"cd\.pack cannot be read"):
        storage.open(other)
    assert sorted(storage.names("packs", ".pack")) == [NAME, other]


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EIO", "EROFS"])
@pytest.mark.parametrize("operation", ["write", "create", "fsync", "rename", "release"])
def test_a_write_that_fails_leaves_nothing(faultfs: FaultFS, name: str, operation: str) -> None:
    """``release`` is reported to nobody: what was synced is safe."""
    storage = LocalStorage(faultfs.path / "archive")
    storage.prepare()
    storage.write("archive.toml", b"old")
    raw = random.Random(1).randbytes(100_000)
    faultfs.fail(Fault(operation, name))
    for action in (
        lambda: storage.write("archive.toml", raw),
        lambda: written(storage, NAME, raw),
    ):
        if operation == "release":
            action()
            continue
        with pytest.raises(OSError, match=str(faultfs.path)):
            action()
    faultfs.fail()
    if operation == "release":
        assert storage.read(NAME) == raw
    else:
        assert storage.read("archive.toml") == b"old"
        assert [p.name for p in faultfs.real.rglob("*") if p.is_file()] == ["archive.toml"]


def written(storage: LocalStorage, name: str, raw: bytes) -> None:
    new = storage.create(name)
    try:
        new.write(raw)
        new.finish()
    except BaseException:
        new.abandon()
        raise


@pytest.mark.parametrize("short", [1, 1000, 5000])
def test_short_writes_are_continued(faultfs: FaultFS, short: int) -> None:
    storage = LocalStorage(faultfs.path / "archive")
    storage.prepare()
    raw = random.Random(short).randbytes(30_000)
    faultfs.fail(Fault("write", short=short, times=20))
    storage.write("archive.toml", raw)
    written(storage, NAME, raw)
    assert storage.read("archive.toml") == raw == storage.read(NAME)


def test_places_that_can_do_less(tmp_path: Path) -> None:
    options = ("direct_io", "statfs_zero", "no_punch", "fixed_mode", "no_replace")
    with fault_system(tmp_path / "faultfs", *options) as system:
        system.fail(Fault("fsyncdir", "EINVAL"))
        storage = LocalStorage(system.path / "archive: of mine")
        storage.prepare()
        raw = random.Random(1).randbytes(9_000_000)
        written(storage, NAME, raw)
        assert storage.read(NAME) == raw and not storage.punch(NAME, [(0, 4096)])
        for text in (b"one", b"two"):
            storage.write("archive.toml", text)
            assert storage.read("archive.toml") == text
        assert storage.free() is None and storage.capacity() is None
        with storage.workspace.scratch() as file:
            file.write(b"x")
            file.flush()
        storage.remove(NAME)
        assert storage.names("packs", "") == []


def test_an_old_file_that_was_moved_aside_is_found_again(tmp_path: Path) -> None:
    """A crash while a file is replaced, where nothing can be replaced at once."""
    storage = LocalStorage(tmp_path)
    for name in ("archive.toml", SESSION):
        storage.write(name, b"old")
        os.rename(storage.root / name, storage.root / f"{name}.old")
    assert storage.read("archive.toml") == b"old"
    storage.clean()
    assert storage.read(SESSION) == b"old"
    shutil.copy(storage.root / SESSION, storage.root / f"{SESSION}.old")
    storage.clean()
    assert storage.names("volumes", "") == [SESSION]


def test_a_read_only_place_is_read(faultfs: FaultFS) -> None:
    storage = LocalStorage(faultfs.path / "archive")
    storage.prepare()
    storage.write("archive.toml", b"x")
    faultfs.read_only()
    with storage.workspace.scratch() as file:
        file.write(b"scratch")
    assert storage.read("archive.toml") == b"x" and storage.workspace.lock(shared=True) is None
    with pytest.raises(SparsebakError, match="Read-only file system"):
        storage.workspace.lock(shared=False)
    with pytest.raises(OSError, match="Read-only file system"):
        storage.write("archive.toml", b"y")


def test_a_scratch_file_that_kept_its_name_goes_with_the_next_writer(faultfs: FaultFS) -> None:
    """Where there are none without a name, it is taken from one that was made."""
    storage = LocalStorage(faultfs.path)
    faultfs.fail(Fault("unlink", "EIO"))
    with pytest.raises(OSError):
        storage.workspace.scratch()
    faultfs.fail()
    (left,) = faultfs.real.iterdir()
    assert left.name.startswith("scratch-")
    foreign = faultfs.real / "scratch-of-mine.tmp"
    foreign.touch()
    storage.clean()
    assert list(faultfs.real.iterdir()) == [foreign]
    with storage.workspace.scratch() as file:
        file.write(b"x")
    assert list(faultfs.real.iterdir()) == [foreign]
