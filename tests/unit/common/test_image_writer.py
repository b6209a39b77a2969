# SPDX-License-Identifier: GPL-2.0-or-later
"""Restored images: whole or an error, on disks that fail and can do less than others."""

import os
import random
from pathlib import Path

import pytest

from common.image_writer import ImageWriter
from tests.conftest import fault_system
from tests.faultfs import Fault, FaultFS


def written(path: Path, raw: bytes) -> None:
    writer = ImageWriter(path, len(raw))
    try:
        for at in range(0, len(raw), 65536):
            writer.write(at, [raw[at : at + 4096], raw[at + 4096 : at + 65536]])
        writer.sync()
    finally:
        writer.close()


@pytest.mark.parametrize("short", [1, 512, 5000])
def test_short_writes_are_gone_on_with(tmp_path: Path, short: int) -> None:
    raw = random.Random(1).randbytes(200_000)
    with fault_system(tmp_path, "direct_io") as system:  # else the kernel itself makes EIO of some
        system.fail(Fault("write", short=short, times=30))
        written(system.path / "image", raw)
        assert (system.real / "image").read_bytes() == raw


def test_where_there_is_no_page_cache(tmp_path: Path) -> None:
    raw = random.Random(1).randbytes(3_000_001)
    with fault_system(tmp_path, "direct_io", "no_punch", "fixed_mode") as system:
        written(system.path / "image", raw)
        assert (system.real / "image").read_bytes() == raw


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EIO", "EROFS"])
@pytest.mark.parametrize("operation", ["create", "truncate", "write", "fsync"])
def test_errors_are_raised_and_what_cannot_begin_leaves_nothing(
    faultfs: FaultFS, name: str, operation: str
) -> None:
    faultfs.fail(Fault(operation, name))
    with pytest.raises(OSError, match=r"\[Errno"):
        written(faultfs.path / "image", bytes(range(256)) * 1000)
    if operation in ("create", "truncate"):
        assert os.listdir(faultfs.real) == []


def test_another_file_is_not_written_to(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    os.link(victim, tmp_path / "hard")
    (tmp_path / "soft").symlink_to(victim)
    os.mkfifo(tmp_path / "fifo")
    for name in ("hard", "soft", "fifo"):
        with pytest.raises(OSError, match=r"\[Errno"):
            ImageWriter(tmp_path / name, 1000)
        assert os.path.lexists(tmp_path / name)
    assert victim.read_bytes() == b"precious"
