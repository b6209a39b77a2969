# SPDX-License-Identifier: GPL-2.0-or-later
"""``notes.json`` of another archive, or an older one, takes the place of what was noted: nothing
looks checked that was not, and what is known to be damaged stays known.
"""

import random
import shutil
from pathlib import Path

import pytest

from backup_vm.archive import notes
from backup_vm.archive.storage.local import LocalStorage
from tests.commands import Commands
from tests.kit import GRAIN, Site

KEEP = ("prune", "--keep-last", "1", "--keep-tag", "gold", "--max-removed", "100%")


def back_up(site: Site, seed: int) -> None:
    site.image().write_bytes(random.Random(seed).randbytes(6 * GRAIN))
    site.backup()


@pytest.fixture
def kept(commands: Commands) -> Commands:
    """Two sessions, of which the first is tagged."""
    for seed in range(2):
        back_up(commands.site, seed)
    commands.keyed("tag", "work", "--session", commands.names()[0], "--add", "gold")
    return commands


def notes_of(site: Site) -> Path:
    return site.archive / "notes.json"


def test_those_of_another_archive_are_not_believed(kept: Commands, tmp_path: Path) -> None:
    site, other = kept.site, Site(tmp_path / "other")
    back_up(other, 7)
    shutil.copytree(site.archive, tmp_path / "aside")
    own, names = notes_of(site).read_bytes(), kept.names()
    kept.run("--archive", str(other.archive), "scrub")
    assert "the last scrub was" in kept.run("--archive", str(other.archive), "doctor", expect=1)[0]
    shutil.copy(notes_of(other), notes_of(site))
    assert "is of another archive" in kept.run("doctor", expect=1)[0]
    assert kept.json("status")["scrubbed"] is None
    assert "is of another archive" in kept.run(*KEEP, expect=4)[1]
    assert "is of another archive" in kept.run("scrub", expect=4)[1]
    assert "is of another archive" in kept.run("tag", "work", "--add", "red", expect=4)[1]
    said = kept.run("verify", "--passphrase-file", str(kept.passphrase))[1]
    assert "could not be noted" in said
    assert notes_of(site).read_bytes() == notes_of(other).read_bytes() and kept.names() == names
    notes_of(site).write_bytes(own)
    kept.run(*KEEP)
    assert kept.names() == names
    # A copy of the folder is the same archive.
    shutil.copy(notes_of(site), tmp_path / "aside")
    kept.run("--archive", str(tmp_path / "aside"), "scrub")


def test_older_ones_are_noticed_once_and_what_is_damaged_stays_known(kept: Commands) -> None:
    site = kept.site
    kept.run("scrub")
    older = notes_of(site).read_bytes()
    pack = next(site.archive.rglob("*.pack"))
    raw = bytearray(pack.read_bytes())
    raw[100] ^= 1
    pack.write_bytes(raw)
    kept.run("scrub", expect=4)
    noted = notes.load(LocalStorage(site.archive))
    assert noted.unsound == {notes.short(pack.name)} and noted.scrubbed is not None
    notes_of(site).write_bytes(older)
    said = kept.run(*KEEP, expect=4)[1]
    assert "is an older one than it was" in said
    after = notes.load(LocalStorage(site.archive))
    assert after.unsound == noted.unsound and after.rotten == noted.rotten
    assert after.scrubbed is not None and after.scrubbed.time <= noted.scrubbed.time
    said = kept.run("scrub", "--older-than", "1d", expect=None)[1]
    assert "is an older one" not in said
    assert notes.load(LocalStorage(site.archive)).rotten == noted.rotten


def test_a_prune_by_rules_waits_once_for_tags_that_may_be_lacking(kept: Commands) -> None:
    site, names = kept.site, kept.names()
    older = notes_of(site).read_bytes()
    kept.run("backup", "--tag", "gold")
    kept.run(*KEEP)
    notes_of(site).write_bytes(older)
    back_up(site, 5)
    before = kept.names()
    assert "is an older one than it was" in kept.run(*KEEP, expect=4)[1]
    assert kept.names() == before
    assert kept.run(*KEEP)[1] == "" and kept.names() == [names[0], before[-1]]
