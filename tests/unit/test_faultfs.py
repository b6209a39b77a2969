# SPDX-License-Identifier: GPL-2.0-or-later
"""The file system that fails as told fails as told: what the kernel hands on is what a program
meets.
"""

import errno
import mmap
import os
from pathlib import Path

import pytest

from tests.conftest import fault_system
from tests.faultfs import Fault, FaultFS


def test_what_is_not_told_to_fail_goes_through(faultfs: FaultFS) -> None:
    folder = faultfs.path / "a"
    folder.mkdir()
    (folder / "one").write_bytes(b"contents")
    os.replace(folder / "one", folder / "two")
    assert (faultfs.real / "a/two").read_bytes() == b"contents" == (folder / "two").read_bytes()
    with open(folder / "two", "r+b") as file:
        os.fsync(file.fileno())
    (folder / "two").unlink()
    assert os.listdir(folder) == []
    assert faultfs.calls()["rename"] == 1


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EIO", "EROFS", "EINTR"])
def test_the_third_write_fails_and_the_fourth_does_not(faultfs: FaultFS, name: str) -> None:
    faultfs.fail(Fault("write", name, path="a/*", after=2, times=1))
    (faultfs.path / "a").mkdir()
    with open(faultfs.path / "a/file", "wb", buffering=0) as file:
        outcomes = []
        for _ in range(4):
            try:
                outcomes.append(os.write(file.fileno(), bytes(100)))
            except OSError as error:
                outcomes.append(-(error.errno or 0))
    if name == "EINTR":  # Python itself tries again
        assert outcomes == [100] * 4
    else:
        assert outcomes == [100, 100, -getattr(errno, name), 100]


def test_a_fault_of_a_folder_is_met_by_all_that_it_holds(faultfs: FaultFS) -> None:
    (faultfs.path / "a/b").mkdir(parents=True)
    (faultfs.path / "ab").mkdir()
    faultfs.fail(Fault("create", "EIO", path="a"))
    for name in ("a/one", "a/b/one"):
        with pytest.raises(OSError, match="Input/output error"):
            (faultfs.path / name).write_bytes(b"")
    (faultfs.path / "ab/one").write_bytes(b"")


def test_a_file_without_a_name_can_be_written_and_read(faultfs: FaultFS) -> None:
    with open(faultfs.path / "one", "w+b", buffering=0) as file:
        os.unlink(faultfs.path / "one")
        assert file.write(b"contents") == 8
        assert os.pread(file.fileno(), 8, 0) == b"contents"


def test_short_writes_and_folders_that_cannot_be_synced(faultfs: FaultFS) -> None:
    faultfs.fail(Fault("write", short=10), Fault("fsyncdir", "EINVAL"))
    with open(faultfs.path / "file", "wb", buffering=0) as file:
        assert os.write(file.fileno(), bytes(100)) == 10
    fd = os.open(faultfs.path, os.O_RDONLY)
    with pytest.raises(OSError, match="Invalid argument"):
        os.fsync(fd)
    os.close(fd)


def test_options_hold(tmp_path: Path) -> None:
    with fault_system(tmp_path, "direct_io", "statfs_zero", "fixed_mode", "no_replace") as system:
        for name in ("one", "two"):
            (system.path / name).write_bytes(bytes(5000))
        with (
            open(system.path / "one", "r+b") as file,
            pytest.raises(OSError, match="No such device"),
        ):
            mmap.mmap(file.fileno(), 0)
        assert os.statvfs(system.path).f_blocks == 0
        with pytest.raises(PermissionError):
            (system.path / "one").chmod(0o600)
        with pytest.raises(FileExistsError):
            os.replace(system.path / "one", system.path / "two")


def test_a_read_only_one_can_be_read(faultfs: FaultFS) -> None:
    (faultfs.path / "one").write_bytes(b"contents")
    faultfs.read_only()
    assert (faultfs.path / "one").read_bytes() == b"contents"
    one, two = faultfs.path / "one", faultfs.path / "two"
    for change in (
        lambda: two.write_bytes(b""),
        lambda: os.close(os.open(one, os.O_RDWR)),
        lambda: one.rename(two),
        lambda: two.hardlink_to(one),
        lambda: two.symlink_to(one),
        lambda: one.chmod(0o600),
        lambda: os.chown(one, 1, 1),
        lambda: os.utime(one),
        lambda: os.truncate(one, 0),
        lambda: one.unlink(),
        lambda: two.mkdir(),
    ):
        with pytest.raises(OSError, match="Read-only"):
            change()
    assert os.listdir(faultfs.path) == ["one"] and one.read_bytes() == b"contents"
