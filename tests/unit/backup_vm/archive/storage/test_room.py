# SPDX-License-Identifier: GPL-2.0-or-later
"""Room on a disk: what cannot be true is not known, and nothing is removed because of it."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.archive.storage.local import LocalStorage
from backup_vm.archive.storage.room import Room, room
from tests.commands import Commands
from tests.kit import GRAIN, fill

NUMBER = st.one_of(
    st.integers(-(1 << 63), (1 << 64) - 1), st.integers(-10, 10), st.integers(1 << 40, 1 << 50)
)


@given(NUMBER, NUMBER, NUMBER)
def test_what_is_known_is_possible(unit: int, blocks: int, available: int) -> None:
    found = room(unit, blocks, available)
    if found is not None:
        assert 0 <= found.free <= found.capacity and found.capacity > 0
        assert found.capacity == blocks * unit
    # The same bits, read as signed numbers.
    wrapped = available - (1 << 64) if available >= 1 << 63 else available
    assert room(unit, blocks, wrapped) == found


@pytest.mark.parametrize(
    ("numbers", "known"),
    [
        ((4096, 1000, 250), Room(250 * 4096, 1000 * 4096)),
        ((4096, 1000, 1000), Room(1000 * 4096, 1000 * 4096)),
        ((4096, 1000, -10), Room(0, 1000 * 4096)),  # what is kept for root is used up
        ((4096, 1000, (1 << 64) - 10), Room(0, 1000 * 4096)),
        ((4096, 1000, 1001), None),
        ((4096, 0, 0), None),
        ((0, 1000, 10), None),
        ((1 << 20, -(1 << 63), -(1 << 63)), None),
        ((1 << 20, 1 << 63, 1 << 63), None),
    ],
)
def test_numbers_of_disks(numbers: tuple[int, int, int], known: Room | None) -> None:
    assert room(*numbers) == known


def test_no_session_is_removed_for_numbers_that_are_made_up(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for seed in range(2):
        fill(commands.site.image(), 5 * GRAIN, seed)
        monkeypatch.setattr("time.time", lambda at=1_800_000_000 + seed * 100: at)
        commands.site.backup()
    monkeypatch.undo()
    monkeypatch.setenv("SPARSEBAK_ARCHIVE", str(commands.site.archive))
    made_up = os.statvfs_result(
        (1 << 20, 1 << 20, -(1 << 63), -(1 << 63), -(1 << 63), 1, 1, 1, 0, 255)
    )
    monkeypatch.setattr(os, "statvfs", lambda _: made_up)
    monkeypatch.setattr(os, "fstatvfs", lambda _: made_up)
    storage = LocalStorage(commands.site.archive)
    assert storage.free() is None and storage.capacity() is None
    for most in ("10%", "20G"):
        error = commands.fails(2, "prune", "--until-free", most, "--min-age", "0d")
        assert "cannot be determined" in error
    assert len(commands.names()) == 2
    done = commands.keyed("drill", "--scratch", str(tmp_path))
    assert done["ok"], "what is not known is not held against a folder"
