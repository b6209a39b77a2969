# SPDX-License-Identifier: GPL-2.0-or-later
"""The newest session of a volume cannot be read, or is lost: no older one passes for the latest."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.certainty import session_files
from tests.commands import Commands
from tests.kit import GRAIN, Site, fill

Make = Callable[[Site], Commands]


@pytest.fixture
def spoilt(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Two sessions, one bit of the head of the second one flipped."""
    site = commands.site
    for turn in range(2):
        fill(site.image(), 4 * GRAIN, turn)
        monkeypatch.setattr("time.time", lambda at=1_800_000_000 + turn * 100: at)
        site.backup()
    monkeypatch.undo()
    monkeypatch.setenv("SPARSEBAK_ARCHIVE", str(site.archive))
    monkeypatch.setenv("SPARSEBAK_AGENT", f"local:{site.config}")
    newest = max(site.archive.glob("volumes/*/*.session"))
    raw = bytearray(newest.read_bytes())
    raw[0] ^= 1
    newest.write_bytes(raw)
    return commands


def test_an_older_session_is_not_the_latest(spoilt: Commands, tmp_path: Path) -> None:
    key, image = ("--passphrase-file", str(spoilt.passphrase)), tmp_path / "image"
    (older,) = spoilt.names()
    at = ("work/private", *key)
    for words in (
        ("assemble", *at, "-o", str(image)),
        ("export", *at, "-o", str(image)),
        ("diff", *at, older, "latest"),
        ("tag", *at, "--add", "x"),
        ("restore", *at, "--yes"),
        ("drill", *at, "--session", "latest"),
        ("files", "ls", *at),
    ):
        said = spoilt.fails(4, *words)
        assert "newest session of work/private cannot be had" in said, words
        assert f"--session {older}" in said, words
    said = spoilt.run("prune", *at, "--session", "latest", expect=4)[1].splitlines()[-1]
    assert "newest session of work/private cannot be had" in said
    assert not image.exists() and spoilt.names() == [older]
    spoilt.run("assemble", *at, "-o", str(image), "--session", older)
    assert image.stat().st_size == 4 * GRAIN
    proven = spoilt.json("verify", *at, expect=4)
    assert [one["ok"] for one in proven["sessions"]] == [True] and len(proven["damaged"]) == 1


def test_all_sessions_are_not_those_that_can_be_read(spoilt: Commands) -> None:
    at = ("work/private", "--passphrase-file", str(spoilt.passphrase))
    for words, code in ((("files", "find", *at, "--session", "all"), 4), (("drill", *at), 0)):
        assert "is damaged" in spoilt.run(*words, expect=code)[1], words


def test_a_new_dom0_is_told_that_a_newest_record_is_missing(
    spoilt: Commands, tmp_path: Path
) -> None:
    out, err = spoilt.run("keys", "-o", str(tmp_path / "keys"), expect=4)
    assert "is damaged" in err and (tmp_path / "keys").exists()


def test_after_the_next_backup_the_latest_is_the_new_one(spoilt: Commands, tmp_path: Path) -> None:
    key, image = ("--passphrase-file", str(spoilt.passphrase)), tmp_path / "image"
    spoilt.run("backup", expect=4)
    spoilt.run("assemble", "work/private", *key, "-o", str(image))
    assert image.read_bytes() == spoilt.site.contents()


def test_a_session_that_is_there_twice_is_not_a_newer_one(
    commands: Commands, tmp_path: Path
) -> None:
    """A copy of it whose name claims a number that no backup comes to for a long time."""
    site = commands.site
    fill(site.image(), 4 * GRAIN, 0)
    site.backup()
    (one,) = site.archive.glob("volumes/*/*.session")
    shutil.copyfile(one, one.with_name(f"0000000077-{one.name.partition('-')[2]}"))
    fill(site.image(), 4 * GRAIN, 1)
    site.backup()
    words = ("work/private", "-o", str(tmp_path / "image"))
    commands.run("assemble", *words, "--passphrase-file", str(commands.passphrase))
    assert (tmp_path / "image").read_bytes() == site.contents()


def test_a_volume_of_which_nothing_can_be_read_can_be_removed(
    commands_for: Callable[[Site], Commands], tmp_path: Path
) -> None:
    """Of a qube that is gone, no backup will ever make it whole."""
    commands = commands_for(Site(tmp_path / "site", volumes=("gone/private", "work/private")))
    site = commands.site
    for seed, name in enumerate(site.volumes):
        fill(site.image(name), 40 * GRAIN, seed)
        site.backup(name)
    ids = {one["qube"]: one["id"] for one in commands.keyed("list")["volumes"]}
    (file,) = (site.archive / "volumes" / ids["gone"]).iterdir()
    file.write_bytes(b"no session")
    before = commands.json("status")["stored"]
    for words in (["-n"], ["--yes"]):
        assert file.exists()
        assert "is damaged" in commands.run("delete", ids["gone"], *words, expect=4)[1]
    assert not file.exists() and commands.json("scrub")["ok"]
    assert commands.json("status")["stored"] < before
    assert list(site.images()) == commands.names()


def test_what_a_damaged_session_listed_is_given_back_with_it(spoilt: Commands) -> None:
    spoilt.run("delete", "work", "--yes", "--passphrase-file", str(spoilt.passphrase), expect=4)
    assert spoilt.json("scrub")["ok"] and spoilt.json("status")["stored"] == 0
    assert not list(spoilt.site.archive.rglob("*.pack"))


def test_a_latest_that_is_known_to_be_missing_is_not_had(
    commands: Commands, tmp_path: Path
) -> None:
    site, image = commands.site, tmp_path / "image"
    for turn in range(2):
        fill(site.image(), 4 * GRAIN, turn)
        site.backup()
    newest = max(site.archive.glob("volumes/*/*.session"))
    newest.unlink()
    key = ("work/private", "--passphrase-file", str(commands.passphrase))
    for words in (("assemble", *key, "-o", str(image)), ("files", "ls", *key)):
        said = commands.run(*words, expect=4)[1]
        assert "newest session of work/private cannot be had" in said, said
    for words in (("verify",), ("keys", "-o", str(tmp_path / "k")), ("copy", str(tmp_path / "c"))):
        assert f"{newest} is missing" in commands.run(*words, expect=4)[1], words
    assert f"{newest} is missing" in commands.run("doctor", expect=1)[0]
    assert f"{newest} is missing" in str(commands.json("status")["problems"])
    (older,) = commands.names()
    commands.run("assemble", *key, "-o", str(image), "--session", older)
    site.backup()
    commands.run("assemble", *key, "-o", str(image), "--force")
    assert image.read_bytes() == site.contents()


def test_nothing_is_proven_where_there_is_nothing(commands: Commands) -> None:
    assert "no session to prove" in commands.fails(1, "verify")
    fill(commands.site.image(), 4 * GRAIN)
    commands.site.backup()
    (file,) = commands.site.archive.glob("volumes/*/*.session")
    file.unlink()
    for part in ((), ("--sample", "5%")):
        assert f"{file} is missing" in commands.run("verify", *part, expect=4)[1]


@pytest.mark.usefixtures("small_packs")
def test_no_other_session_is_the_latest_where_that_is_lost(built: Site, commands_for: Make) -> None:
    """Least of all for what is removed; also when a run that writes has named it, or the catalog
    was made again, until another one is stored.
    """
    commands, file = commands_for(built), session_files(built)[-1]
    key, names = ("--passphrase-file", str(commands.passphrase)), list(built.images())
    volume, raw = ("work/private", "--session", "latest"), file.read_bytes()
    file.unlink()

    def refused(*words: str) -> None:
        said = commands.run(*words, expect=4)[1]
        assert file.name in said and f"name it: --session {names[-2]}" in said, words
        assert len(session_files(built)) == 2

    every: list[tuple[str, ...]] = [
        ("tag", *volume, "--add", "good"),
        ("restore", "--yes", *volume),
        ("prune", *volume, "--dry-run"),
        ("prune", *volume, "--yes"),
    ]
    for words in every:
        refused(*words)
    commands.run("scrub")
    refused("prune", *volume, "--yes")
    assert file.name in commands.run("verify", *volume, expect=4)[1]
    with built.open(True) as archive:
        archive.rebuild_catalog()
    refused("drill", *volume, *key)
    file.write_bytes(raw)
    commands.run("tag", *volume, "--add", "good")
    file.unlink()
    refused("tag", *volume, "--add", "good")
    built.backup()
    commands.run("prune", *volume, "--yes")
    assert len(session_files(built)) == 2
