# SPDX-License-Identifier: GPL-2.0-or-later
"""What fails while a file is written says which one: there may be several disks, of which one is
full. And what fails while a lock is taken gives it up.
"""

import errno
import os
from pathlib import Path

import pytest

from common.durable import (
    UNREADABLE,
    lock,
    read_small,
    remove,
    replace,
    still_named,
    write_synced,
)


def test_a_write_that_fails_says_where() -> None:
    with pytest.raises(OSError) as caught:
        write_synced(Path("/dev/full"), b"x")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/dev/full")


def test_what_was_written_here_is_read_and_nothing_without_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 10)
    assert read_small(tmp_path / "file") == b"x" * 10
    with pytest.raises(FileNotFoundError):
        read_small(tmp_path / "none")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "long").touch()
    os.truncate(tmp_path / "long", 8 << 30)
    for name in ("zero", "folder", "fifo", "long"):
        with pytest.raises(OSError, match="not a regular file of at most 16 MiB") as caught:
            read_small(tmp_path / name)
        assert caught.value.errno in UNREADABLE
        assert caught.value.filename == str(tmp_path / name)


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        replace(tmp_path / "file", b"x")
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "file"), None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_or_a_folder_in_its_place_is_removed(tmp_path: Path) -> None:
    (tmp_path / "folder/within").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name in ("folder", "file", "none"):
        remove(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_known_of_a_locked_file_gives_its_lock_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a run that goes through many volumes it would keep that one busy to the end."""
    path = tmp_path / "lock"
    assert still_named(fd := lock(path))
    os.close(fd)
    fd = lock(path)
    path.unlink()
    assert not still_named(fd)
    with pytest.raises(OSError):
        os.fstat(fd)
    fd = lock(path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", lambda fd: os.stat(tmp_path / "none"))
        with pytest.raises(OSError):
            still_named(fd)
    os.close(lock(path))
