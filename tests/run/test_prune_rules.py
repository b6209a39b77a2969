# SPDX-License-Identifier: GPL-2.0-or-later
"""Pruning by rules and until there is room, as a user runs it; the account of space against what
pruning gives back.
"""

import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backup_vm.archive.prune import prune
from backup_vm.archive.space import Account
from backup_vm.archive.storage.local import LocalStorage
from common.text import session_name
from tests.commands import Commands
from tests.conftest import QuickFolders
from tests.kit import GRAIN, Site, change, fill, some_bytes

HOUR, DAY = 3600, 86400
NOW = 1_790_000_000


def sessions_of_ages(
    site: Site, monkeypatch: pytest.MonkeyPatch, ages: list[int], names: tuple[str, ...] = ()
) -> list[str]:
    """A session for each age in seconds, oldest first, each with a change; our clock stays at NOW.
    Their names.
    """
    for name in names or site.volumes:
        if not site.image(name).stat().st_size:
            fill(site.image(name), 8 * GRAIN)
    for age in sorted(ages, reverse=True):
        monkeypatch.setattr(time, "time", lambda at=NOW - age: at)
        for name in names or site.volumes:
            change(site.image(name), random.Random(age), resize=False)
            with open(site.image(name), "r+b") as file:
                file.seek(age * 4096 % (7 * GRAIN))
                file.write(random.Random(age).randbytes(GRAIN))
        site.backup(*names)
    monkeypatch.setattr(time, "time", lambda: NOW)
    return [session_name(NOW - age) for age in sorted(ages, reverse=True)]


def test_rules_say_what_stays_and_why(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    site = commands.site
    ages = [hour * HOUR for hour in range(0, 12, 3)] + [day * DAY for day in range(1, 6)]
    names = sessions_of_ages(site, monkeypatch, ages)
    images = site.images()
    plan = commands.keyed("prune", "--keep-daily", "3", "--keep-last", "2", "--dry-run")
    kept = {entry["session"]: entry["why"] for entry in plan["plan"] if entry["keep"]}
    assert plan["dry_run"] and len(plan["removed"]) == len(names) - len(kept) and plan["freed"] > 0
    assert kept[names[-1]] == ["newest", "last 1", "daily 1"] and commands.names() == names
    text = commands.run(
        "prune", "--keep-daily", "3", "-n", "--passphrase-file", str(commands.passphrase)
    )[0]
    assert "no rule keeps it" in text and "daily 2" in text and "would be removed" in text
    done = commands.keyed("prune", "work", "--keep-daily", "3", "--keep-last", "2")
    assert done["removed"] == plan["removed"] and commands.names() == list(kept)
    # Packs that go have an index, too.
    assert done["freed"] == pytest.approx(plan["freed"], rel=0.02)
    assert site.images() == {name: images[name] for name in kept}
    assert site.scrubbed() == []
    assert commands.keyed("prune", "--keep-daily", "3", "--keep-last", "2")["removed"] == []


def test_what_only_its_age_keeps_is_told_of(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions_of_ages(commands.site, monkeypatch, [DAY, HOUR, 0])
    words, age = ("prune", "--keep-last", "1"), ("--min-age", "3d")
    for more in (age, (*age, "-n")):
        said = commands.run("-v", *words, *more)[0]
        assert "2 sessions that no rule keeps stay for now" in said and "3d" in said
        assert "(--min-age)" in said
        found = commands.json(*words, *more)
        assert (found["spared"], found["min_age"], found["removed"]) == (2, 3 * DAY, [])
        until = [row["spared_until"] for row in found["plan"]]
        assert [row["spared"] for row in found["plan"]] == [True, True, False]
        assert until[2] is None and until[1] - until[0] == pytest.approx(DAY - HOUR, abs=60)
        assert until[0] == pytest.approx(time.time() + 2 * DAY, abs=3600)
    assert commands.json(*words, "--min-age", "2h")["spared"] == 1
    assert (
        "for now" not in commands.run("-v", *words, "--min-age", "0d", "--max-removed", "100%")[0]
    )
    assert len(commands.names()) == 1


def test_without_rules_nothing_is_pruned(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sessions_of_ages(commands.site, monkeypatch, [0, DAY, 2 * DAY])
    assert "nothing says which" in commands.fails(2, "prune")
    assert "give one of the two" in commands.fails(
        2, "prune", "work", "--session", names[0], "--keep-last", "1"
    )
    assert "which volumes" in commands.fails(2, "prune", "--session", names[0])
    twice = commands.json("prune", "work", *("--session", names[0]) * 2, "--dry-run")
    assert [one["session"] for one in twice["removed"]] == names[:1]
    assert "cannot be combined" in commands.fails(2, "prune", "--keep-default", "--keep-last", "1")
    assert "10%" in commands.fails(
        2, "prune", "--until-free", "lots", "--passphrase-file", str(commands.passphrase)
    )
    for rule, value in (
        ("--keep-last", "0"),
        ("--keep-daily", "x"),
        ("--keep-within", "7"),
        ("--keep-within", "1q"),
    ):
        with pytest.raises(SystemExit):
            commands.run("prune", rule, value)
    assert commands.names() == names
    assert commands.keyed("prune", "--keep-default")["removed"] == []


def test_rules_of_the_settings(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = sessions_of_ages(commands.site, monkeypatch, [hour * HOUR for hour in range(4)])
    commands.settings("[prune]\nkeep_last = 1\n[prune.qubes.work]\nkeep_last = 3\n")
    assert [s["session"] for s in commands.keyed("prune", "-n")["removed"]] == names[:1]
    monkeypatch.setenv("SPARSEBAK_AGENT", "")
    assert "rules for qubes by name" in commands.fails(2, "prune", "--dry-run")
    commands.settings('[prune]\nkeep_last = 1\n[prune.qubes."work/private"]\nkeep_default = true\n')
    assert commands.keyed("prune")["removed"] == []
    commands.settings("[prune]\nkeep_last = 1\n[prune.qubes.other]\nkeep_last = 3\n")
    assert [s["session"] for s in commands.keyed("prune")["removed"]] == names[:3]
    for wrong, said in (
        ("[prune]\nkeep_dayly = 1", "keep_dayly"),
        ("[prune]\nkeep_default = true\nkeep_last = 1", "cannot be combined"),
        ("[prune]\nafter_backup = 1", "after_backup"),
        ("[prune]\nuntil_free = 10", "until_free"),
        ("[prune]\nqubes = 1", "prune.qubes"),
        ('[prune.qubes."../x"]\nkeep_last = 1', "qube"),
        ("prune = 1", "table"),
        ("colour = 1", "colour"),
        ("x =", "config.toml"),
    ):
        commands.settings(wrong)
        assert said in commands.fails(2, "list")


def test_pruning_after_each_backup(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    names = sessions_of_ages(commands.site, monkeypatch, [hour * HOUR for hour in range(1, 5)])
    monkeypatch.undo()
    monkeypatch.setenv("SPARSEBAK_ARCHIVE", str(commands.site.archive))
    monkeypatch.setenv("SPARSEBAK_AGENT", f"local:{commands.site.config}")
    commands.settings("[prune]\nkeep_last = 2\nafter_backup = true\n")
    fill(commands.site.image(), 8 * GRAIN, 5)
    commands.run("backup")
    assert commands.names()[0] == names[-1] and len(commands.names()) == 2
    assert list(commands.site.images().values())[-1] == commands.site.contents()


def test_tags_and_notes(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    site = commands.site
    names = sessions_of_ages(site, monkeypatch, [hour * HOUR for hour in range(5)])
    commands.keyed(
        "tag",
        "work/private",
        "--session",
        names[1],
        "--add",
        "before-upgrade",
        "--note",
        "it still worked",
    )
    commands.keyed("tag", "work", "--session", names[2], "--add", "a", "--add", "b")
    commands.keyed("tag", "work", "--session", "b", "--remove", "b")
    listed = {s["session"]: s for s in commands.keyed("list", "work")["volumes"][0]["sessions"]}
    assert (
        listed[names[1]]["tags"] == ["before-upgrade"]
        and listed[names[1]]["note"] == "it still worked"
    )
    assert listed[names[2]]["tags"] == ["a"] and listed[names[0]]["tags"] == []
    text = commands.run("list", "work", "--passphrase-file", str(commands.passphrase))[0]
    assert "before-upgrade “it still worked”" in text
    assert [
        s["session"] for s in commands.keyed("list", "--tag", "a")["volumes"][0]["sessions"]
    ] == [names[2]]
    commands.keyed(
        "assemble", "work", "--session", "before-upgrade", "-o", str(site.root / "out.img")
    )
    assert (site.root / "out.img").read_bytes() == site.images()[names[1]]
    for wrong in ("20261123-061500", "latest", "a b", "", "\x1b[31m", "x" * 64):
        assert "cannot be a tag" in commands.fails(2, "tag", "work", "--add", wrong)
    assert "one line" in commands.fails(2, "tag", "work", "--note", "two\nlines")
    assert "nothing to do" in commands.fails(2, "tag", "work")
    commands.keyed("prune", "--keep-last", "1", "--keep-tag", "before-upgrade")
    assert commands.names() == [names[1], names[4]]
    assert len((site.archive / "notes.json").read_text().split('"tags"')) == 2, (
        "notes of what is gone are gone"
    )
    site.image().write_bytes(b"x" * GRAIN)
    monkeypatch.setattr(time, "time", lambda: NOW + 5)
    site.backup()
    commands.keyed("tag", "work", "--add", "latest-one", "--note", "")
    assert commands.names()[-1] == session_name(NOW + 5)


def test_a_backup_may_be_tagged(commands: Commands) -> None:
    fill(commands.site.image(), 8 * GRAIN)
    commands.run("backup", "--tag", "gold", "--note", "by hand")
    (volume,) = commands.keyed("list", "--tag", "gold")["volumes"]
    assert volume["sessions"][0]["note"] == "by hand"
    assert "cannot be a tag" in commands.fails(2, "backup", "--tag", "../x")
    assert len(commands.names()) == 1


def test_damaged_tags_protect_everything(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = commands.site
    names = sessions_of_ages(site, monkeypatch, [0, DAY, 2 * DAY])
    commands.keyed("tag", "work", "--session", names[0], "--add", "gold")
    path = site.archive / "notes.json"
    for damaged in (path.read_bytes().replace(b"gold", b"cold"), b"", b"{}\n", b"\xff" * 50):
        path.write_bytes(damaged)
        assert "notes.json" in commands.run("list")[1]
        assert (
            "notes.json"
            in commands.run("prune", "--keep-last", "1", "--keep-tag", "gold", expect=4)[1]
        )
        assert "notes.json" in commands.run("scrub", expect=4)[1]
        commands.run("verify", "--passphrase-file", str(commands.passphrase))
    path.unlink()
    assert commands.names() == names


def test_until_there_is_room(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    site = commands.site
    names = sessions_of_ages(site, monkeypatch, [hour * HOUR for hour in range(8)])
    commands.keyed("tag", "work", "--session", names[1], "--add", "gold")

    def free(storage: LocalStorage) -> int:
        return 5_000_000 - sum(storage.allocated(name) for name in storage.names("packs", ".pack"))

    monkeypatch.setattr(LocalStorage, "free", free)
    monkeypatch.setattr(LocalStorage, "capacity", lambda _: 10_000_000)
    start = free(LocalStorage(site.archive))
    assert commands.keyed("prune", "--until-free", str(start))["removed"] == []
    words = [
        "prune",
        "--until-free",
        str(start + 100_000),
        "--keep-tag",
        "gold",
        "--keep-last",
        "8",
    ]
    plan = commands.keyed(*words, "--dry-run")
    gone = [session["session"] for session in plan["removed"]]
    assert gone and gone == [name for name in names if name != names[1]][: len(gone)], (
        "the oldest first, the tagged one not"
    )
    assert [e["why"] for e in plan["plan"] if not e["keep"]] == [["makes room"]] * len(gone)
    assert commands.keyed(*words)["removed"] == plan["removed"]
    assert free(LocalStorage(site.archive)) >= start + 90_000, "holes are punched in whole blocks"
    key = ("--passphrase-file", str(commands.passphrase))
    assert "less in all" in commands.fails(2, "prune", "--until-free", "1G", *key)
    assert commands.names()[-2:] == names[-2:], "what cannot be had costs nothing"
    commands.keyed("prune", "--until-free", "99%", "--keep-tag", "gold")
    assert commands.names() == [names[1], names[-1]], "as far as it goes, and never the newest"
    assert site.scrubbed() == []


@settings(max_examples=25)
@given(st.randoms(use_true_random=False), st.data())
def test_what_pruning_gives_back_is_what_the_account_says(
    quick_folders: QuickFolders, rng: random.Random, data: st.DataObject
) -> None:
    site = Site(quick_folders.mktemp("space") / "site", volumes=("a/private", "b/private"))
    for name in site.volumes:
        site.image(name).write_bytes(some_bytes(rng, 6 * GRAIN))
    for _ in range(data.draw(st.integers(1, 5))):
        site.backup()
        change(site.image(rng.choice(site.volumes)), rng)
    with site.open(True) as archive:
        volumes = archive.sessions()
        every = [session for series in volumes.values() for session in series]
        doomed = data.draw(st.lists(st.sampled_from(every), unique_by=lambda session: session.file))
        account = Account(archive, volumes)
        uses = [account.volume(volume) for volume in volumes]
        before = archive.catalog.count()[1]
        assert sum(use.own for use in uses) + max((use.shared for use in uses), default=0) == before
        promised = account.comes_back({session.file for session in doomed})
        singly = {session.file: account.comes_back({session.file}) for session in doomed}
        assert sum(singly.values()) <= promised
        prune(archive, doomed)
        assert before - archive.catalog.count()[1] == promised


def test_status_tells_of_space_and_health(commands: Commands) -> None:
    site = commands.site
    site.image().write_bytes(b"the same text again and again " * 20_000)
    site.backup()
    status = commands.keyed("status")
    (volume,) = status["volumes"]
    assert status["scrubbed"] is None and volume["verified"] is None and volume["shared"] == 0
    assert volume["own"] == status["stored"] > 0 and volume["compression"] > 10
    commands.run("scrub")
    commands.keyed("verify")
    status = commands.keyed("status")
    assert status["scrubbed"]["ok"] and status["volumes"][0]["verified"]["ok"]
    text = commands.run("status", "--passphrase-file", str(commands.passphrase))[0]
    assert "Last scrub: 20" in text and "Last drill: never" in text and text.count("never") == 1
    pack = next(site.archive.rglob("*.pack"))
    raw = bytearray(pack.read_bytes())
    raw[200] ^= 1
    pack.write_bytes(raw)
    commands.run("verify", "--passphrase-file", str(commands.passphrase), expect=4)
    commands.run("scrub", expect=4)
    status = commands.keyed("status", "--no-space")
    assert (
        not status["scrubbed"]["ok"]
        and not status["volumes"][0]["verified"]["ok"]
        and status["volumes"][0]["own"] is None
    )
    assert "damage found" in commands.run("status")[0]


def test_rules_for_an_archive_without_sessions_are_rules(commands: Commands) -> None:
    assert commands.keyed("prune", "--keep-last", "1")["removed"] == []
    assert "nothing says" in commands.fails(2, "prune")
