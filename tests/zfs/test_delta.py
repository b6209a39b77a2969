# SPDX-License-Identifier: GPL-2.0-or-later
"""The delta of real ZFS volumes against the bytes, under all that may happen to a volume."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from dom0_agent.bitmap import GRAIN
from dom0_agent.sources import Range, Source, Sources
from tests.kit import truly_changed
from tests.zfs.kit import MIB, Container, scribble, zfs
from wire.status import Refused

SIZE = 12 * MIB
KINDS = {
    "plain": ("16k", ()),
    "small": ("8k", ("compression=lz4",)),
    "large": ("1m", ("compression=zstd",)),
    "dedup": ("16k", ("dedup=on", "checksum=sha256")),
    "encrypted": (
        "16k",
        ("encryption=on", "keyformat=passphrase", "keylocation=file:///scratch/key"),
    ),
}
"""Volumes: size of a block, and properties."""


@pytest.fixture
def volume(
    container: Callable[..., Container], tmp_path: Path
) -> Callable[[str], tuple[Container, Path, Source]]:
    """Makes a volume of a kind; gives its container, its device and its source."""

    def make(kind: str) -> tuple[Container, Path, Source]:
        block, options = KINDS[kind]
        if kind == "encrypted":
            Path("/scratch/key").write_text("only for tests")
        made = container(*options)
        device = made.volume("work", SIZE, block)
        return made, device, Sources(tmp_path).open(made.place("work"))

    return make


def grains(ranges: list[Range]) -> set[int]:
    return {grain for start, end in ranges for grain in range(start // GRAIN, -(-end // GRAIN))}


@pytest.mark.parametrize("kind", KINDS)
def test_no_change_is_ever_missed(
    volume: Callable[[str], tuple[Container, Path, Source]], kind: str
) -> None:
    made, device, source = volume(kind)
    rng, before, exact = random.Random(kind), b"", 0
    for number in range(1, 8):
        if number in (3, 5, 6):
            made.resize("work", {3: 16, 5: 8, 6: 12}[number] * MIB)
        elif number == 4:  # and back, between two snapshots
            made.resize("work", 4 * MIB)
            made.resize("work", 16 * MIB)
        if number != 7:  # nothing changed
            scribble(device, rng, 3)
        now = device.read_bytes()
        assert source.live_size() in (len(now), SIZE)
        source.snapshot(number)
        fd = source.open(number)
        assert os.pread(fd, len(now) + 1, 0) == now and source.size(number) == len(now)
        os.close(fd)
        if before:
            ranges = list(source.delta(number - 1, number))
            assert ranges == sorted(ranges)
            assert truly_changed(before, now) <= grains(ranges)
            assert all(0 <= a < b <= min(len(before), len(now)) for a, b in ranges)
            exact += len(grains(ranges)) < min(len(before), len(now)) // GRAIN
            source.drop(number - 1)
        before = now
    assert exact or kind == "large"
    assert list(source.snapshots()) == [7] and len(made.ours()) == 2  # and the clone
    source.drop(7)
    assert made.ours() == []


def test_only_what_was_written_is_named(
    volume: Callable[[str], tuple[Container, Path, Source]],
) -> None:
    """Of blocks that are there; what has none is named, too, where its neighbours were written."""
    _, device, source = volume("plain")
    with open(device, "r+b") as file:
        file.write(os.urandom(SIZE))
    source.snapshot(1)
    assert source.unchanged(1)
    with open(device, "r+b") as file:
        for at in (3 * GRAIN, 3 * GRAIN + 20000, 90 * GRAIN):
            file.seek(at)
            file.write(b"x")
    assert not source.unchanged(1)
    source.snapshot(2)
    block = 16 << 10
    assert list(source.delta(1, 2)) == [
        (3 * GRAIN, 3 * GRAIN + 2 * block),
        (90 * GRAIN, 90 * GRAIN + block),
    ]
    source.snapshot(3)
    assert list(source.delta(2, 3)) == []


def test_a_rollback_removes_the_base_or_is_seen(
    volume: Callable[[str], tuple[Container, Path, Source]],
) -> None:
    made, device, source = volume("plain")
    name, rng = f"{made.name}/work", random.Random(1)
    scribble(device, rng)
    zfs("snapshot", f"{name}@qubes:after:1")
    scribble(device, rng)
    source.snapshot(1)
    old = device.read_bytes()
    scribble(device, rng)
    zfs("snapshot", f"{name}@qubes:after:2")
    scribble(device, rng)
    zfs("rollback", "-r", f"{name}@qubes:after:2")
    source.snapshot(2)
    now = device.read_bytes()
    assert truly_changed(old, now) <= grains(list(source.delta(1, 2)))
    zfs("rollback", "-r", f"{name}@qubes:after:1")
    source.snapshot(3)
    assert source.snapshots() == {3}  # seen by who asks for it first
    with pytest.raises(Refused, match="gone"):
        list(source.delta(2, 3))


def test_snapshots_that_do_not_belong_together_have_no_delta(
    volume: Callable[[str], tuple[Container, Path, Source]],
) -> None:
    _, device, source = volume("plain")
    source.snapshot(1)
    scribble(device, random.Random(2))
    source.snapshot(2)
    with pytest.raises(Refused, match="zfs send failed"):
        list(source.delta(2, 1))


def test_an_old_link_leads_to_no_other_volume(
    volume: Callable[[str], tuple[Container, Path, Source]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it does, the device is not there yet."""
    made, device, source = volume("plain")
    source.snapshot(1)
    monkeypatch.setattr("dom0_agent.sources.zfs._APPEARS", 0.3)
    link = Path("/dev/zvol") / made.name / ".sparsebak:work::0-00000001"
    other = made.volume("other", SIZE)
    monkeypatch.setattr("dom0_agent.sources.zfs.ZVOLS", made_up := Path("/scratch/zvol"))
    wrong = made_up / link.relative_to("/dev/zvol")
    wrong.parent.mkdir(parents=True, exist_ok=True)
    wrong.symlink_to(other.resolve())
    with pytest.raises(Refused, match="did not appear"):
        source.open(1)
    wrong.unlink()
    source.drop(1)
    assert made.ours() == [] and device.exists()
