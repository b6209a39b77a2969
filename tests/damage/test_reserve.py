# SPDX-License-Identifier: GPL-2.0-or-later
"""The room that an archive keeps for removing sessions: made by whoever writes, where it takes
nothing from the next backup, and never through what somebody put in its place. places/test_full.py
has the disks that are full.
"""

import os
import random

import pytest

from backup_vm.archive import reserve
from backup_vm.archive.opening import open_archive
from backup_vm.archive.storage.local import LocalStorage
from tests.kit import GRAIN, Site


def test_what_is_kept_grows_with_the_archive(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = site.archive / reserve.NAME
    for seed, wanted in enumerate((1 << 20, 5 << 20, 3 << 20)):
        monkeypatch.setattr(reserve, "_wanted", lambda archive, wanted=wanted: wanted)
        site.image().write_bytes(random.Random(seed).randbytes(GRAIN))
        site.backup()
        about = kept.stat()
        assert about.st_size == about.st_blocks * 512 == max(wanted, (1 + 4 * (seed > 0)) << 20)


def test_a_copy_of_it_with_holes_keeps_no_room_and_is_made_again(site: Site) -> None:
    kept = site.archive / reserve.NAME
    site.image().write_bytes(os.urandom(GRAIN))
    site.backup()
    size = kept.stat().st_size
    kept.unlink()
    with open(kept, "wb") as file:
        file.truncate(size)
    site.image().write_bytes(os.urandom(2 * GRAIN))
    site.backup()
    assert kept.stat().st_blocks * 512 == size


@pytest.mark.parametrize("strange", ["link", "fifo", "folder", "hard link"])
def test_nothing_is_written_through_what_has_its_name(site: Site, strange: str) -> None:
    kept, elsewhere = site.archive / reserve.NAME, site.root / "elsewhere"
    elsewhere.write_bytes(b"mine")
    kept.unlink(missing_ok=True)
    {
        "link": lambda: kept.symlink_to(elsewhere),
        "fifo": lambda: os.mkfifo(kept),
        "folder": lambda: kept.mkdir(),
        "hard link": lambda: os.link(elsewhere, kept),
    }[strange]()
    site.image().write_bytes(os.urandom(GRAIN))
    site.backup()
    with site.open(True) as archive:
        reserve.give_back(archive.storage)
    assert elsewhere.read_bytes() == b"mine"
    assert site.scrubbed() == []


def test_it_is_not_made_where_it_would_end_the_next_backup(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalStorage, "free", lambda self: 2 << 20)
    site.image().write_bytes(os.urandom(GRAIN))
    site.backup()
    assert not (site.archive / reserve.NAME).exists()


@pytest.mark.parametrize("said", [0, 1 << 20, 1 << 40])
def test_one_that_a_run_emptied_which_died_is_filled_again_before_anything_else(
    site: Site, monkeypatch: pytest.MonkeyPatch, said: int
) -> None:
    """Of no more than it is made of, whatever size the store says."""
    kept = site.archive / reserve.NAME
    site.image().write_bytes(os.urandom(GRAIN))
    site.backup()
    size = kept.stat().st_size
    os.truncate(kept, 0)
    os.truncate(kept, said)
    monkeypatch.setattr(LocalStorage, "capacity", lambda self: 1 << 20)
    monkeypatch.setattr(LocalStorage, "free", lambda self: size // 2)
    with site.open(True):
        about = kept.stat()
        assert about.st_size == about.st_blocks * 512 == size == 1 << 20


def test_a_run_that_makes_room_empties_it_and_fills_it_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = site.archive / reserve.NAME
    site.image().write_bytes(os.urandom(GRAIN))
    site.backup()
    before = kept.stat()
    monkeypatch.setattr(LocalStorage, "free", lambda self: 0)
    for command in ("prune", "scrub"):
        with open_archive(site.archive, True, command):
            now = kept.stat()
            assert (now.st_ino, now.st_size, now.st_blocks) == (before.st_ino, before.st_size, 0)
        assert kept.stat().st_blocks == before.st_blocks
