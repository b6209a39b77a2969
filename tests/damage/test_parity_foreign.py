# SPDX-License-Identifier: GPL-2.0-or-later
"""An archive with parity, in which something that is no file is where a file of ours belongs, or a
disk gives a block at times only: all else is looked at, and mended.
"""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from backup_vm.archive.parity.mended import Mended
from backup_vm.archive.parity.mending import Mender
from backup_vm.errors import DamagedError
from tests.commands import Commands
from tests.damage.parity import contents, copied, files, spoil
from tests.kit import Site


@pytest.fixture
def site(made_with_parity: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return copied(made_with_parity, tmp_path / "site", monkeypatch)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(("put", "kind"), [(fifo, "pack"), (folder, "session")])
def test_in_the_place_of_what_is_covered(
    site: Site, commands: Commands, put: Callable[[Path], None], kind: str
) -> None:
    whole, packs = contents(site), files(site, "pack")
    strange = packs[0] if kind == "pack" else files(site, "session")[1]
    put(strange)
    spoil(packs[-1], 100, 3000)
    damaged = {row["file"] for row in commands.json("scrub", expect=4)["damaged"]}
    assert {str(one.relative_to(site.archive)) for one in (strange, packs[-1])} <= damaged
    done = commands.json("scrub", "--repair", expect=4 if put is folder else 0)
    assert str(packs[-1].relative_to(site.archive)) in done["mended"]
    if put is folder:  # what is in it may be somebody's: it is for them to move it away
        strange.rmdir()
        assert commands.json("scrub", "--repair")["ok"]
    assert contents(site) == whole
    assert commands.json("scrub")["ok"]


def test_in_the_place_of_parity(site: Site, commands: Commands) -> None:
    name = "ab" + "12" * 15
    strange = site.archive / "parity/ab" / f"{name}.parity"
    strange.mkdir(parents=True)
    for words in (
        ("scrub", "--parity", "25%"),
        ("prune", "--keep-last", "1", "--min-age", "0d", "--yes"),
    ):
        assert "not up to date" not in commands.run(*words)[1]
    assert strange.is_dir()
    assert commands.json("scrub")["ok"]


def test_a_block_that_comes_at_times_only(
    site: Site, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents(site)
    for path in (files(site, "session")[1], files(site, "pack")[0]):
        spoil(path, 100, 300)
    calls, put = itertools.count(1), Mender._put

    def failing(mender: Mender, name: str, mended: Mended) -> None:
        if next(calls) == 1:  # after it was checked
            monkeypatch.setattr(mended, "whole", lambda: mended.block(-1))
        put(mender, name, mended)

    def gone(_: Mended, number: int) -> bytes:
        if number < 0:
            raise DamagedError("a block that could be read cannot be read any more")
        return block(_, number)

    block = Mended.block
    monkeypatch.setattr(Mended, "block", gone)
    monkeypatch.setattr(Mender, "_put", failing)
    assert len(commands.json("scrub", "--repair")["mended"]) == 2
    assert not list(site.archive.rglob("*.tmp")) and contents(site) == whole
