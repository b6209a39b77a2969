# SPDX-License-Identifier: GPL-2.0-or-later
"""Files written in the background: the same bytes as any other way, at every size, and
errors told.
"""

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.archive.storage import writing
from backup_vm.archive.storage.writing import BackgroundFile, Blocks
from tests.conftest import QuickFolders


def new(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)


@given(st.lists(st.integers(0, 40_000), max_size=12), st.booleans())
def test_what_is_written_is_there(
    quick_folders: QuickFolders, sizes: list[int], direct: bool
) -> None:
    path = quick_folders.mktemp("writing") / "file"
    rng = random.Random(len(sizes))
    parts = [rng.randbytes(size) for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "BLOCK", 16384)
        if not direct:
            patch.setattr(BackgroundFile, "_open_direct", lambda _: -1)
        file = BackgroundFile(new(path), Blocks())
        for part in parts:
            file.write(part)
        file.sync()
        file.close()
        file.close()
    assert path.read_bytes() == b"".join(parts)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_errors_are_told_at_the_latest_when_it_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writing, "BLOCK", 4096)
    file = BackgroundFile(new(tmp_path / "file"), Blocks())
    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        for _ in range(5):
            file.write(bytes(4096))
        file.sync()
    file.close()


def test_where_direct_writing_is_refused_it_goes_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.open

    def no_direct(path: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no")
        return original(path, flags, *rest)

    monkeypatch.setattr(writing, "BLOCK", 4096)
    monkeypatch.setattr(os, "open", no_direct)
    file = BackgroundFile(new(tmp_path / "file"), Blocks())
    file.write(b"x" * 10_000)
    file.sync()
    file.close()
    assert (tmp_path / "file").read_bytes() == b"x" * 10_000
    monkeypatch.undo()
    monkeypatch.setattr(writing, "BLOCK", 4096)
    file = BackgroundFile(new(tmp_path / "other"), Blocks())
    written = os.pwrite

    def unaligned(fd: int, data: Any, offset: int) -> int:
        if fd == file._direct:
            raise OSError(errno.EINVAL, "no")
        return written(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", unaligned)
    file.write(b"y" * 10_000)
    file.sync()
    file.close()
    assert (tmp_path / "other").read_bytes() == b"y" * 10_000
