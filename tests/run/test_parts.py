# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks a part at a time, and backups that prove what they stored."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backup_vm.archive import notes
from backup_vm.archive.storage.local import LocalStorage
from tests.commands import Commands
from tests.kit import GRAIN, Site, fill

VOLUMES = ("work/private", "vault/private", "mail/private")
DAY = 86400


@pytest.fixture
def three(tmp_path: Path, commands_for: Callable[[Site], Commands]) -> Commands:
    """Three volumes, three sessions of each, and a clock that a test moves."""
    site = Site(tmp_path / "site", volumes=VOLUMES)
    for run in range(3):
        for at, name in enumerate(VOLUMES):
            fill(site.image(name), 10 * GRAIN, seed=100 * run + at)
        site.backup()
    return commands_for(site)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    import time

    shifted, now = [0.0], time.time

    def move(seconds: float) -> None:
        shifted[0] += seconds

    monkeypatch.setattr("time.time", lambda: now() + shifted[0])
    return move


def verified(row: dict[str, list[dict[str, str]]]) -> set[str]:
    return {f"{one['qube']} {one['session']}" for one in row["sessions"]}


def test_a_verification_of_a_part_each_night_comes_to_all(
    three: Commands, clock: Callable[[float], None]
) -> None:
    seen: set[str] = set()
    for night in range(5):
        clock(DAY)
        part = verified(three.keyed("verify", "--sample", "20%"))
        assert len(part) == 2 and (night == 4 or not part & seen)  # 9 sessions of one size
        seen |= part
    assert len(seen) == 9
    assert three.keyed("verify", "--older-than", "10d")["sessions"] == []
    assert len(three.keyed("verify", "--older-than", "3d")["sessions"]) == 3
    clock(DAY)
    assert len(three.keyed("verify", "--older-than", "1h", "--sample", "1K")["sessions"]) == 1
    assert len(three.keyed("verify")["sessions"]) == 3, "without a part, the newest of each"
    assert len(three.keyed("verify", "--session", "latest", "--older-than", "30d")["sessions"]) == 0
    text = three.run("verify", "--older-than", "30d", "-v", *key(three))[0]
    assert text == "Nothing is due.\n"


def key(commands: Commands) -> list[str]:
    return ["--passphrase-file", str(commands.passphrase)]


def test_what_was_not_proven_for_longest_is_said(
    three: Commands, clock: Callable[[float], None]
) -> None:
    row = three.keyed("status")["unproven"]
    first = three.names()
    assert row["session"] in first and not row["verified"]
    clock(DAY)
    three.keyed("verify", "--session", "all")
    row = three.keyed("status")["unproven"]
    assert row["verified"] and "last verified" in three.run("status", *key(three))[0]


def test_a_scrub_of_a_part_is_a_part(three: Commands, clock: Callable[[float], None]) -> None:
    packs = len(list(three.site.archive.glob("packs/*/*.pack")))
    assert packs == 3
    for night in range(3):
        clock(DAY)
        row = three.json("scrub", "--sample", "1K")
        assert (row["packs"], row["of"], row["ok"]) == (1, 3, True)
        status = three.json("status")
        assert status["scrubbed"] is None, "a part is not all of it"
        assert status["part_scrubbed"]["ok"]
        assert (status["unscrubbed"]["never"] == 0) == (night == 2)
    text = three.run("status")[0]
    assert "Last scrub: never. In parts: " in text and ", the oldest " in text
    assert three.json("scrub", "--older-than", "30d")["packs"] == 0
    fill(three.site.image(), 10 * GRAIN, seed=9)
    three.site.backup()
    assert three.json("scrub", "--older-than", "30d")["packs"] == 1, "the new one, never checked"
    assert three.json("scrub", "--older-than", "0h")["packs"] == 4
    assert three.json("status")["scrubbed"]["ok"], "all packs in one run are all of it"
    three.json("scrub")
    assert "In parts" not in three.run("status")[0]


def test_every_pack_of_the_archive_is_looked_at_by_parts(
    three: Commands, clock: Callable[[float], None]
) -> None:
    damaged = sorted(three.site.archive.glob("packs/*/*.pack"))[1]
    raw = bytearray(damaged.read_bytes())
    raw[len(raw) // 2] ^= 1
    damaged.write_bytes(raw)
    codes = []
    for _ in range(4):  # in one of them the damaged one is looked at again, beside another
        clock(DAY)
        code, _, said = three.outcome("scrub", "--sample", "1K")
        codes.append(code)
        assert (damaged.name in said) <= (code == 4)
    assert codes == sorted(codes) and codes[-2:] == [4, 4], codes
    found = notes.load(LocalStorage(three.site.archive))
    assert len(found.packs) == 3 and found.scrubbed is None


def test_a_part_of_damage_is_found_again_by_what_spoils_sessions(three: Commands) -> None:
    for pack in three.site.archive.glob("packs/*/*.pack"):
        pack.write_bytes(b"")
    for _ in range(4):
        assert three.outcome("scrub", "--sample", "1K")[0] == 4


def test_damage_is_told_again_until_it_is_gone(
    three: Commands, clock: Callable[[float], None]
) -> None:
    """Of a pack's index, which costs no session anything."""
    pack = sorted(three.site.archive.glob("packs/*/*.pack"))[1]
    sound = pack.read_bytes()
    pack.write_bytes(sound[:-20] + bytes([sound[-20] ^ 1]) + sound[-19:])
    for _ in range(2):
        code, _, said = three.outcome("scrub", "--older-than", "30d")
        assert code == 4 and pack.name in said
    for _ in range(3):  # it keeps none of the others from its turn
        clock(DAY)
        code, _, said = three.outcome("scrub", "--sample", "1K")
        assert code == 4 and pack.name in said
        assert not three.json("status")["part_scrubbed"]["ok"], "a sound part is not all"
    assert three.json("status")["unscrubbed"]["oldest"] > time.time() - 3 * DAY
    pack.write_bytes(sound)
    assert three.json("scrub", "--older-than", "30d")["packs"] == 1
    assert three.json("status")["part_scrubbed"]["ok"]
    assert three.json("scrub", "--older-than", "30d")["packs"] == 0


@pytest.fixture
def spoilt(three: Commands, clock: Callable[[float], None]) -> Commands:
    """A chunk of the second session is damaged, which a scrub of everything has found."""
    packs = three.site.archive.glob("packs/*/*.pack")
    pack = sorted(packs, key=lambda path: path.stat().st_mtime_ns)[1]
    raw = bytearray(pack.read_bytes())
    raw[len(raw) // 2] ^= 1
    pack.write_bytes(raw)
    assert three.outcome("scrub")[0] == 4
    clock(DAY)
    return three


def test_a_sound_part_is_not_silent_about_what_is_damaged_elsewhere(spoilt: Commands) -> None:
    """Also where the part is empty, and for whoever has another catalog."""
    for words in (["scrub", "--older-than", "30d"], ["scrub", "--sample", "1K"]):
        assert spoilt.outcome(*words)[0] == 4
    verify = ["verify", *key(spoilt)]
    code, _, said = spoilt.outcome(*verify, "--older-than", "1000d", "--json")
    assert code == 4 and "is missing from the archive" in said
    for _ in range(2):
        code, _, said = spoilt.outcome(*verify, "--older-than", "30d", "--sample", "1K")
        assert code == 4 and said
    (spoilt.site.archive / "catalog.sqlite").unlink()
    code, out, said = spoilt.outcome(*verify, "--session", "latest", "--older-than", "1h", "--json")
    assert code == 4 and said and json.loads(out)["damaged"]


def test_what_was_mended_is_soon_known_to_be(
    spoilt: Commands, clock: Callable[[float], None]
) -> None:
    """By the backup after it: a part looks at what was damaged before its turn comes."""
    assert spoilt.outcome("verify", "--session", "all", *key(spoilt))[0] == 4
    for number, name in enumerate(VOLUMES):
        fill(spoilt.site.image(name), 10 * GRAIN, seed=100 + number)  # of the second session again
    spoilt.site.backup()
    clock(DAY)
    scrub = spoilt.json("scrub", "--sample", "1K", expect=4)
    assert [one for one in scrub["outside"] if "did not prove good" in one]
    assert not [one for one in scrub["outside"] if ".pack" in one] and not scrub["damaged"]
    unsound = {"1"}
    for _ in range(9):
        clock(DAY)
        code, out, said = spoilt.outcome("verify", "--sample", "1K", "--json", *key(spoilt))
        unsound = {line for line in said.splitlines() if "did not prove good" in line}
        assert (code == 4) == bool(unsound), said
        if not unsound:
            break
    assert not unsound
    assert spoilt.outcome("scrub", "--sample", "1K")[0] == 0


def test_what_is_new_each_night_keeps_nothing_old_from_its_turn(
    three: Commands, clock: Callable[[float], None]
) -> None:
    three.json("scrub")
    first = {path.name[:16] for path in three.site.archive.glob("packs/*/*.pack")}
    last = time.time()
    for night in range(7):
        fill(three.site.image(), 10 * GRAIN, seed=50 + night)
        three.site.backup()
        clock(DAY)
        assert three.json("scrub", "--sample", "1K")["packs"] == 1
    times = notes.load(LocalStorage(three.site.archive)).packs
    assert all(times[pack] > last + DAY / 2 for pack in first)
    assert len(times) > len(first), "and what is new has its turn, too"


def test_wrong_parts_are_wrong_usage(three: Commands) -> None:
    for words in (["--sample", "0%"], ["--sample", "many"], ["--older-than", "soon"]):
        for command in ("verify", "scrub"):
            with pytest.raises(SystemExit) as end:
                three.run(command, *words)
            assert end.value.code == 2


@pytest.mark.parametrize("keyed", [True, False])
def test_a_backup_proves_what_it_stored(three: Commands, keyed: bool) -> None:
    fill(three.site.image(), 12 * GRAIN, seed=77)
    agent = ["--agent", f"local:{three.site.config}"]
    words = ["backup", "work", "--verify", *(key(three) if keyed else [])]
    row = three.json(*agent, *words)
    assert row["proven"] == 1
    volumes = three.keyed("list")["volumes"]
    work = next(one for one in volumes if one["qube"] == "work")
    assert work["sessions"][-1]["verified"]["ok"] and not work["sessions"][-2]["verified"]
    assert "1 new session proven." in three.run(*agent, *words, "-v")[0]


def test_what_does_not_prove_good_is_said_and_nothing_is_pruned(
    three: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes a pack and gives back something else."""
    from backup_vm.jobs.backup import BackupRun

    three.settings("[prune]\nkeep_last = 1\nafter_backup = true\n")
    fill(three.site.image(), 12 * GRAIN, seed=78)
    before, run = set(three.site.archive.glob("packs/*/*.pack")), BackupRun.run

    def spoiling(self: BackupRun, volumes: list[object]) -> object:
        report = run(self, volumes)  # type: ignore[arg-type]
        for pack in set(three.site.archive.glob("packs/*/*.pack")) - before:
            raw = bytearray(pack.read_bytes())
            raw[2000] ^= 1
            pack.write_bytes(raw)
        return report

    monkeypatch.setattr(BackupRun, "run", spoiling)
    agent = ["--agent", f"local:{three.site.config}"]
    code, out, said = three.outcome(*agent, "backup", "--verify", "--json")
    assert code == 4 and "did not prove good" in said, said
    assert json.loads(out)["proven"] == 2 and len(json.loads(out)["sessions"]) == 3
    assert len(three.names()) == 12, "nothing old went"


def test_a_wrong_key_stops_a_backup_before_it_begins(three: Commands) -> None:
    (three.site.root / "wrong").write_text("wrong")
    agent = ["--agent", f"local:{three.site.config}"]
    words = ["--verify", "--passphrase-file", str(three.site.root / "wrong")]
    assert three.outcome(*agent, "backup", *words)[0] == 12
    assert len(three.names()) == 9
