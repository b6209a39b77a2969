# SPDX-License-Identifier: GPL-2.0-or-later
"""Parity on a whole archive: what is within its promise is mended, what is beyond is reported, and
nothing is made worse.
"""

import inspect
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.archive.parity import making, plan
from backup_vm.archive.parity.making import plans
from backup_vm.archive.parity.mending import Mender, Parity
from backup_vm.archive.parity.plan import LARGEST_ROWS, Shape
from tests.commands import Commands
from tests.damage.parity import contents, copied, files, spoil
from tests.kit import GRAIN, Site


@pytest.fixture
def site(made_with_parity: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("SPARSEBAK_ARCHIVE", str(tmp_path / "site" / "archive"))
    return copied(made_with_parity, tmp_path / "site", monkeypatch)


@pytest.fixture
def commands(site: Site, capsys: pytest.CaptureFixture[str]) -> Commands:
    found = Commands(site, capsys)
    found.settings("")
    return found


def test_a_scrub_makes_parity_for_all_and_again_only_for_what_is_new(
    site: Site, commands: Commands
) -> None:
    before = contents(site, "parity")
    with site.open() as archive:
        covered = [name for _, plan in plans(archive, before) if plan for name in plan.names]
        assert sorted(covered) == sorted([*archive.pack_files(), *archive.session_files()])
    commands.run("scrub", "--parity", "25%")
    assert contents(site, "parity") == before
    site.disturb(random.Random(5))
    site.backup()
    commands.run("scrub", "--parity", "25%")
    after = contents(site, "parity")
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2
    status = commands.json("status")
    assert status["parity"] >= sum(map(len, after.values()))
    assert status["parity_files"] == len(after)


@pytest.mark.parametrize("scrubbed_before", [False, True])
def test_bad_sectors_are_mended(site: Site, commands: Commands, scrubbed_before: bool) -> None:
    whole, images = contents(site), site.images()
    rng = random.Random(6)
    for path in (*files(site, "pack")[::4], files(site, "session")[1]):
        spoil(path, rng.randrange(path.stat().st_size), 4096)
    assert "damage" in str(commands.json("scrub", expect=4)) if scrubbed_before else True
    done = commands.json("scrub", "--repair")
    assert done["ok"]
    assert len(done["mended"]) == len(files(site, "pack")[::4]) + 1
    assert contents(site) == whole
    assert commands.json("scrub") == {
        "damaged": [],
        "ok": True,
        "mended": [],
        "noted": True,
    }
    assert site.images() == images
    report = site.backup()
    assert not report.done[0].full  # nothing is compared that is whole again
    site.verify_all()


def test_lost_files_are_mended(site: Site, commands: Commands) -> None:
    whole, images = contents(site), site.images()
    for path in (files(site, "pack")[2], *files(site, "session")[1:]):
        path.unlink()
    done = commands.json("scrub", "--repair")
    assert done["ok"]
    assert len(done["mended"]) == 3
    assert contents(site) == whole
    assert site.images() == images
    assert commands.json("scrub")["ok"]


def test_a_long_row_of_lost_sessions_is_mended(site: Site, commands: Commands) -> None:
    """Each builds on the one before: however many they are, the stack does not grow."""
    for seed in range(8):
        with open(site.image(), "r+b") as file:
            file.write(random.Random(seed).randbytes(100))
        site.backup()
    commands.run("scrub", "--parity", "25%")
    whole, (*lost, _) = contents(site), files(site, "session")
    lost[-1].unlink()
    assert commands.json("scrub", "--repair")["ok"]  # imports what is needed
    for path in lost:
        path.unlink()
    with site.open(True) as archive:
        mender = Mender(archive, Parity(archive))
        limit, depth = sys.getrecursionlimit(), len(inspect.stack(0))
        sys.setrecursionlimit(depth + 40)
        try:
            mender.sessions()
        finally:
            sys.setrecursionlimit(limit)
        assert len(mender.done) == len(lost)
    assert contents(site) == whole


def test_what_is_beyond_is_reported_and_left(site: Site, commands: Commands) -> None:
    for path in files(site, "pack"):
        spoil(path, 0, path.stat().st_size // 2)
    damaged = contents(site)
    row = commands.json("scrub", "--repair", expect=4)
    assert row["damaged"]
    assert not row["mended"]
    assert contents(site) == damaged


def test_parity_is_never_made_of_what_is_damaged(site: Site, commands: Commands) -> None:
    whole = contents(site)
    bad = files(site, "pack")[0]
    spoil(bad, 5000, 100)
    _, error = commands.run("scrub", "--parity", "50%", expect=4)
    assert "gets no new parity" in error
    assert commands.json("scrub", "--repair")["mended"] == [str(bad.relative_to(site.archive))]
    assert contents(site) == whole


def test_a_prune_renews_what_it_touches(site: Site, commands: Commands) -> None:
    commands.settings('parity = "25%"\n')
    commands.run("prune", "--keep-last", "1", "--min-age", "0d", "--yes")
    assert commands.json("scrub")["ok"]
    assert not commands.run("scrub")[1]
    whole, images = contents(site), site.images()
    for path in (files(site, "pack")[1], *files(site, "session")):
        spoil(path, 100, 5000)
    assert commands.json("scrub", "--repair")["ok"]
    assert contents(site) == whole
    assert site.images() == images


def test_without_the_setting_a_prune_leaves_parity_that_a_scrub_renews(
    site: Site, commands: Commands
) -> None:
    commands.run("prune", "--keep-last", "1", "--min-age", "0d", "--yes")
    assert "changed since parity was made" in commands.run("scrub")[1]
    commands.run("scrub", "--parity", "25%")
    assert not commands.run("scrub")[1]


def test_a_backup_keeps_parity_up(site: Site, commands: Commands) -> None:
    commands.settings('parity = "25%"\n')
    site.disturb(random.Random(7))
    commands.run("backup", "--agent", f"local:{site.config}")
    whole = contents(site)
    newest = max(files(site, "pack"), key=lambda path: path.stat().st_mtime_ns)
    spoil(newest, 60, 4096)
    assert commands.json("scrub", "--repair")["ok"]
    assert contents(site) == whole


def test_zeros_in_a_needed_chunk_are_no_hole(site: Site, commands: Commands) -> None:
    whole = contents(site)
    path = files(site, "pack")[3]
    raw = bytearray(path.read_bytes())
    raw[76 : 76 + GRAIN] = bytes(GRAIN)
    path.write_bytes(raw)
    commands.run("scrub", expect=4)
    commands.run("scrub", "--parity", "25%", expect=4)
    (site.archive / "catalog.sqlite").unlink()
    assert commands.json("scrub", "--repair")["ok"]
    assert contents(site) == whole


def test_packs_of_more_than_a_set_may_have_get_what_it_may_have(
    site: Site, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As packs of more than 512 MiB with 100 %: once, and they are mended by it."""
    monkeypatch.setattr(plan, "LARGEST_ROWS", 6 * GRAIN)
    monkeypatch.setattr(making, "LARGEST_PARITY", 6 * GRAIN)
    commands.run("scrub", "--parity", "100%")
    made = {path: path.stat().st_ino for path in files(site, "parity")}
    assert commands.run("-v", "scrub", "--parity", "100%") == ("No damage found.\n", "")
    assert made == {path: path.stat().st_ino for path in files(site, "parity")}
    whole = contents(site)
    for path in files(site, "pack"):
        spoil(path, path.stat().st_size // 3, 3 * GRAIN)
    assert commands.json("scrub", "--repair")["ok"] and contents(site) == whole


@given(
    st.lists(st.integers(1, plan.LARGEST_FILE), min_size=1, max_size=5),
    st.floats(0.01, 1.0),
)
def test_every_set_has_a_shape_with_what_was_asked_for(sizes: list[int], share: float) -> None:
    while len(sizes) > 1 and sum(sizes) > making.LARGEST_SET:  # as they are put together
        sizes.pop()
    shape = Shape.of(sizes, share)
    parity = shape.parity_blocks * shape.block_size
    assert shape.possible()
    assert shape.share >= share - 1e-6 or parity + shape.width * shape.block_size > LARGEST_ROWS


def test_what_is_mended_at_once_is_bounded() -> None:
    """A forged file, sparse, costs whoever writes it nothing: lost blocks are held in memory."""
    assert Shape(1 << 20, 1, 1, 512, 512).possible()
    assert not Shape(1 << 20, 1, 1, 513, 513).possible()
