# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that are full, over quota, read-only, or take no file so large: one sentence says it, what
was stored is kept, and the next run is as if nothing had been.
"""

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import fault_system, mounted
from tests.faultfs import Fault
from tests.kit import GRAIN
from tests.places.life import Life

KEY = "--passphrase-file"


@pytest.mark.parametrize("error", ["EINVAL", "ENOTSUP"])
def test_a_file_system_that_brings_no_file_to_disk(tmp_path: Path, error: str) -> None:
    with fault_system(tmp_path / "faultfs") as system:
        system.fail(Fault("fsync", error))
        life = Life(tmp_path, str(system.path / "archive"))
        life.refuses(
            1, "cannot bring files to disk .fsync.*another", "init", life.place, "--label=tests"
        )
        assert not [path for path in system.real.rglob("*") if path.is_file()]
        system.fail()
        life.init()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("ENOSPC", "full.*(make room|free space)|No space.*make room"),
        ("EDQUOT", "quota exceeded.*quota is used up|is full.*free space"),
        ("EFBIG", "File too large.*takes no files so large"),
    ],
)
def test_a_disk_that_takes_no_more(tmp_path: Path, error: str, said: str) -> None:
    with fault_system(tmp_path / "faultfs") as system:
        life = Life(tmp_path, str(system.path / "archive"))
        life.init()
        for where, after in (("archive/packs/*", 0), ("*", 1)):
            system.fail(Fault("write", error, path=where, after=after))
            life.refuses(1, said, "backup")
        system.fail()
        life.does("backup")
        life.change(1)
        system.fail(Fault("write", error, after=5))
        life.refuses(1, said, "backup")
        system.fail()
        life.does("verify", KEY, str(life.key))
        life.does("backup")
        name = life.sessions()[-1]
        system.fail(Fault("write,truncate,fallocate", error, path="out*"))
        out = str(system.path / "out.img")
        line = life.refuses(1, said, "assemble", "work", "-o", out, KEY, str(life.key))
        assert "out.img" in line
        system.fail()
        assert life.assembled(name) == life.site.contents()
        life.does("scrub")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "disk.img", tmp_path / "disk", 48 << 20, ["mkfs.ext4", "-q"])


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)


def test_a_disk_that_is_read_only(disk: Path, tmp_path: Path) -> None:
    """What reads, reads; what writes says that it cannot."""
    life = Life(tmp_path, str(disk / "archive"))
    remount(disk, "ro")
    life.refuses(
        1, "Read-only file system .mount it for writing", "init", life.place, "--label=tests"
    )
    remount(disk, "rw")
    life.init()
    life.does("backup")
    remount(disk, "ro")
    contents = life.site.contents()
    assert life.assembled(life.sessions()[0]) == contents
    life.does("status")
    life.warns("could not be noted", "scrub")
    for words in (["verify"], ["copy", str(tmp_path / "copy")]):
        life.warns("could not be noted", *words, KEY, str(life.key))
    assert life.assembled("latest", place=str(tmp_path / "copy")) == contents
    life.change(1)
    for words in (["backup"], ["prune", "--keep-last=1"], ["delete", "work", "--yes"]):
        life.refuses(1, "read-only|Read-only.*mount it for writing", *words)
    life.refuses(1, "Read-only", "copy", str(disk / "copy"), KEY, str(life.key))
    remount(disk, "rw")
    life.does("backup")
    assert life.assembled("latest") == life.site.contents()
    life.does("scrub")


def test_a_disk_that_becomes_read_only(tmp_path: Path) -> None:
    """As the kernel makes one after an error: in the middle of a run."""
    with fault_system(tmp_path / "faultfs") as system:
        life = Life(tmp_path, str(system.path / "archive"))
        life.init()
        life.does("backup")
        for after in (0, 2, 8, 30):
            life.change(after)
            system.read_only(after)
            life.refuses(1, "Read-only file system.*mount it for writing", "backup")
            assert life.assembled("latest", tmp_path / "out.img")
            life.warns("could not be noted", "verify", KEY, str(life.key))
            system.fail()
        life.does("backup")
        assert life.assembled("latest") == life.site.contents()
        life.does("scrub")


def test_a_full_disk(disk: Path, tmp_path: Path) -> None:
    """A real one: full in mid-backup, room is made by prune, and all is there."""
    life = Life(tmp_path, str(disk / "archive"))
    life.init()
    for seed in range(2):
        life.site.image().write_bytes(random.Random(seed).randbytes(24 * GRAIN))
        life.does("backup")
    second = life.site.contents()
    with open(disk / "ballast", "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    os.truncate(disk / "ballast", (disk / "ballast").stat().st_size - (1 << 18))
    life.site.image().write_bytes(random.Random(2).randbytes(16 * GRAIN))
    life.refuses(1, "full|No space", "backup", "--ignore-free-space")
    assert life.assembled("latest") == second
    all_but_one = ("--keep-last=1", "--min-age=0d", "--max-removed=100%")
    life.does("prune", "work", *all_but_one, KEY, str(life.key))
    assert len(life.sessions()) == 1 and life.assembled("latest") == second
    life.does("backup", "--ignore-free-space")
    assert life.assembled("latest") == life.site.contents()
    life.does("scrub")
