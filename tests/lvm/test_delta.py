# SPDX-License-Identifier: GPL-2.0-or-later
"""The delta of a real thin pool against the bytes, for pools of several block sizes, under all that
may happen to a volume.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from dom0_agent.bitmap import GRAIN
from dom0_agent.config import Pool, Volume
from dom0_agent.sources import Sources
from tests.kit import truly_changed
from tests.lvm.kit import MIB, POOLS, Group, scribble

SIZE = 12 * MIB


@pytest.fixture
def volume(group: Group, request: pytest.FixtureRequest) -> Callable[[str], tuple[Volume, Path]]:
    """Makes a volume in a pool; gives it and its device."""
    request.addfinalizer(group.empty)

    def make(pool: str) -> tuple[Volume, Path]:
        group.pool(pool)
        device = group.volume(pool, "vm-some-work", SIZE)
        found = Pool("p", "lvm_thin", Path("/dev") / group.name, group.name, pool)
        return Volume("some", "work", found, "vm-some-work"), device

    return make


@pytest.mark.parametrize("pool", POOLS)
def test_no_change_is_ever_missed(
    volume: Callable[[str], tuple[Volume, Path]], group: Group, tmp_path: Path, pool: str
) -> None:
    place, device = volume(pool)
    rng, before = random.Random(pool), b""
    for number in range(1, 5):
        if number in (2, 3, 4):
            group.resize("vm-some-work", {2: 16, 3: 8, 4: 12}[number] * MIB)
        scribble(device, rng, 3)
        now, sources = device.read_bytes(), Sources(tmp_path)
        source = sources.open(place)
        with source.together():
            source.snapshot(number)
            fd = source.open(number)
            assert os.pread(fd, len(now), 0) == now and source.size(number) == len(now)
            held = [
                range(a // GRAIN, -(-b // GRAIN)) for a, b in source.data_ranges(fd, 0, len(now))
            ]
            os.close(fd)
            filled = {
                at // GRAIN
                for at in range(0, len(now), GRAIN)
                if now[at : at + GRAIN] != bytes(GRAIN)
            }
            assert filled <= {grain for grains in held for grain in grains}
            if before:
                ranges = list(source.delta(number - 1, number))
                named = {
                    grain
                    for start, end in ranges
                    for grain in range(start // GRAIN, -(-end // GRAIN))
                }
                assert truly_changed(before, now) <= named
                assert all(end <= min(len(before), len(now)) for _, end in ranges)
                source.drop(number - 1)
        before = now
    assert len(group.snapshots()) == 1


def test_only_what_was_written_is_named_and_only_what_is_mapped_is_read(
    volume: Callable[[str], tuple[Volume, Path]], group: Group, tmp_path: Path
) -> None:
    place, device = volume("vm-pool")
    group.resize("vm-some-work", 1 << 40)  # far more than the pool has
    source = Sources(tmp_path).open(place)
    fd = os.open(device, os.O_RDWR)
    places = [0, 3 * GRAIN, (1 << 39) + 7 * GRAIN, (1 << 40) - GRAIN]
    for at in places:
        os.pwrite(fd, os.urandom(1000), at)
    os.fsync(fd)
    source.snapshot(1)
    reading = source.open(1)
    assert list(source.data_ranges(reading, 0, 1 << 40)) == [(at, at + GRAIN) for at in places]
    os.close(reading)
    os.pwrite(fd, b"x", places[2])
    os.pwrite(fd, b"x", 9 * GRAIN)
    os.close(fd)
    source.snapshot(2)
    assert list(source.delta(1, 2)) == [(9 * GRAIN, 10 * GRAIN), (places[2], places[2] + GRAIN)]


def test_a_qube_that_was_shut_down_since_the_report(
    volume: Callable[[str], tuple[Volume, Path]], group: Group, tmp_path: Path
) -> None:
    """qubesd removes the volume, and what the qube wrote to gets its name."""
    place, device = volume("vm-pool")
    group.lvm("lvcreate", "--snapshot", "--setactivationskip", "n", "--name", f"{place.vid}-snap",
              f"{group.name}/{place.vid}")  # fmt: skip
    group.device(f"{place.vid}-snap").write_bytes(written := os.urandom(1000))
    source = Sources(tmp_path).open(place._replace(live=f"{place.vid}-snap"))
    assert source.live_size() == SIZE
    group.lvm("lvremove", "--force", f"{group.name}/{place.vid}")
    group.lvm("lvrename", group.name, f"{place.vid}-snap", place.vid)
    source.snapshot(1)
    fd = source.open(1)
    assert os.pread(fd, 1000, 0) == written
    os.close(fd)
