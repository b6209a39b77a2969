# SPDX-License-Identifier: GPL-2.0-or-later
"""Volumes that are gone, renamed or left out: nothing of them is held for ever, nothing forgotten
that could not be removed.
"""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from dom0_agent.admin import cli
from dom0_agent.config import Pool, Volume
from dom0_agent.sources import Sources
from dom0_agent.sources.file import FileSource
from dom0_agent.sources.lvm_thin import LvmThinSource
from dom0_agent.tracking.pending_log import PendingLog
from dom0_agent.tracking.state import VolumeState
from tests.kit import GRAIN, Site, fill
from wire.status import Code, Refused


@pytest.fixture
def two(tmp_path: Path) -> Site:
    site = Site(tmp_path / "site", volumes=("work/private", "old/private"))
    for name in site.volumes:
        fill(site.image(name), 4 * GRAIN)
    site.backup()
    return site


def agent(site: Site, *words: str) -> int:
    return cli.main(["--config", str(site.config), *words])


def take_out(site: Site, name: str = "old/private") -> None:
    """What an administrator does whose qube is gone."""
    blocks = site.config.read_text().split("[[volume]]")
    qube = name.partition("/")[0]
    site.config.write_text("[[volume]]".join(b for b in blocks if f'qube = "{qube}"' not in b))
    site.image(name).unlink()


def test_forget_finds_what_is_gone(two: Site, capsys: pytest.CaptureFixture[str]) -> None:
    take_out(two)
    assert len(two.snapshots("old/private")) == 1
    capsys.readouterr()
    assert agent(two, "status") == 0
    assert "old/private: not backed up any more, 1 snapshot" in capsys.readouterr().out
    assert agent(two, "status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["orphans"] == [
        {"volume": "old/private", "snapshots": 1}
    ]
    assert agent(two, "forget", "old/private", "--yes") == 0
    assert two.snapshots("old/private") == [] and not (two.state / "volumes/old").exists()
    assert len(two.snapshots()) == 1  # the other's
    for name in ("old/private", "nobody/private"):
        assert agent(two, "forget", name, "--yes") == 1
        assert f"nothing is known of {name}" in capsys.readouterr().err
    assert agent(two, "status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["orphans"] == []


def test_a_volume_that_moved_is_forgotten_in_both_places(two: Site) -> None:
    other = two.root / "other"
    other.mkdir()
    shutil.move(two.image(), other / "work-private.img")
    text = two.config.read_text().replace(
        'path = "pool"', 'path = "pool"\n[[pool]]\nname = "q"\ndriver = "file"\npath = "other"', 1
    )
    head, *rest = text.split("[[volume]]")
    rest = [
        block.replace('pool = "p"', 'pool = "q"') if '"work"' in block else block for block in rest
    ]
    two.config.write_text("[[volume]]".join([head, *rest]))
    assert agent(two, "forget", "work/private", "--yes") == 0
    assert two.snapshots() == []


def test_a_volume_that_moved_away_and_back_keeps_its_snapshot(tmp_path: Path) -> None:
    site = Site(tmp_path / "site")
    fill(site.image(), 4 * GRAIN)
    text, other = site.config.read_text(), site.root / "other"
    other.mkdir()
    for at in ("pool", "other", "pool", "other", "pool"):
        site.config.write_text(text.replace('path = "pool"', f'path = "{at}"'))
        shutil.copytree(site.pool, other, dirs_exist_ok=True, ignore=lambda *_: [".sparsebak"])
        site.backup()
    left = VolumeState(site.state, "work", "private").load().left
    assert [Path(one["pool"]["path"]).name for one in left] == ["other"]
    assert agent(site, "monitor") == 0
    assert len(site.snapshots()) == 1 and not list(other.glob(".sparsebak/*/*/*"))
    assert site.backup().done[0].stored == 0 and site.backup().done[0].full is False
    site.config.write_text(text.replace('path = "pool"', 'path = "other"'))
    site.backup()
    assert len(list(other.glob(".sparsebak/*/*/*"))) == 1
    os.rename(site.pool, site.root / "away")
    assert agent(site, "forget", "work/private", "--yes") == 1  # but what is there goes
    assert not list(other.glob(".sparsebak/*/*/*"))
    os.rename(site.root / "away", site.pool)
    assert agent(site, "forget", "work/private", "--yes") == 0 and site.snapshots() == []


def test_what_cannot_be_removed_stays_known(
    two: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    take_out(two)
    before = (two.state / "volumes/old/private/state.json").read_bytes()

    def fail(self: FileSource, number: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(FileSource, "drop", fail)
        assert agent(two, "forget", "old/private", "--yes") == 1
        assert capsys.readouterr().err == "sparsebak-agent: old/private: Input/output error\n"
    os.rename(two.pool, two.root / "away")  # a disk that is not mounted
    assert agent(two, "forget", "old/private", "--yes") == 1
    assert "pool p is not there" in capsys.readouterr().err
    two.pool.mkdir()  # where it is mounted
    assert agent(two, "forget", "old/private", "--yes") == 1
    assert "pool p is not there" in capsys.readouterr().err
    two.pool.rmdir()
    assert agent(two, "monitor", "-q") == 1  # for the other volume
    assert (two.state / "volumes/old/private/state.json").read_bytes() == before
    os.rename(two.root / "away", two.pool)
    assert agent(two, "forget", "old/private", "--yes") == 0 and two.snapshots("old/private") == []


def test_monitor_lets_go_of_what_is_gone_and_says_so(
    two: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    committed = VolumeState(two.state, "old", "private").load().follows.popitem()[1].committed
    take_out(two)
    assert agent(two, "monitor", "work") == 0  # a volume by name: nothing else
    assert len(two.snapshots("old/private")) == 1
    capsys.readouterr()
    assert agent(two, "monitor", "--json") == 0
    out, err = capsys.readouterr()
    assert (
        json.loads(out)["let_go"] == ["old/private"]
        and "old/private is not backed up any more" in err
    )
    assert two.snapshots("old/private") == [] and len(two.snapshots()) == 1
    state = VolumeState(two.state, "old", "private").load()
    assert state.base is None and state.follows.popitem()[1].committed == committed
    assert agent(two, "monitor") == 0
    assert "old/private" not in capsys.readouterr().err  # once


def test_monitor_removes_what_a_killed_restore_of_a_volume_that_is_gone_left(two: Site) -> None:
    take_out(two)
    left = two.image("old/private").with_name(two.image("old/private").name + ".sparsebak-restore")
    for _ in range(2):  # with snapshots, and without
        left.touch()
        assert agent(two, "monitor", "-q") == 0
        assert not left.exists() and two.snapshots("old/private") == []


def test_monitor_tries_again_what_it_could_not_remove(
    two: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    take_out(two)
    for drop in (refuse, lambda self, number: None):  # as images in folders do; as LVM's volumes do
        with monkeypatch.context() as broken:
            broken.setattr(FileSource, "drop", drop)
            agent(two, "monitor")
            assert "old/private: " in capsys.readouterr().err
        assert len(two.snapshots("old/private")) == 1
    assert agent(two, "monitor") == 0 and two.snapshots("old/private") == []


def refuse(self: FileSource, number: int) -> None:
    raise Refused(Code.SOURCE_FAILED, f"{self.name}: cannot remove a snapshot")


def test_nothing_is_forgotten_whose_snapshots_stay_without_a_word(
    two: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LVM's volumes are removed together, and what cannot go is only logged."""
    with monkeypatch.context() as broken:
        broken.setattr(FileSource, "drop", lambda self, number: None)
        assert agent(two, "forget", "old/private", "--yes") == 1
    assert (two.state / "volumes/old/private/state.json").exists()
    assert agent(two, "forget", "old/private", "--yes") == 0
    assert two.snapshots("old/private") == []


def test_what_is_gone_gives_way_even_while_it_is_read(
    two: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(two.image("old/private"), 5 * GRAIN, 7)
    with two.open(True) as archive:
        made = two.agent(archive)
        made.snapshot("old", "private", bytes(16), 0, int(time.time()))
        made.close()
    take_out(two)
    (pending,) = [
        f.pending for f in VolumeState(two.state, "old", "private").load().follows.values()
    ]
    assert pending is not None
    session_log = PendingLog(two.state / "volumes/old/private" / pending.log)  # Extract still runs
    agent(two, "monitor")
    assert len(two.snapshots("old/private")) == 1

    def full(self: FileSource) -> None:
        raise Refused(Code.NO_SPACE, "the pool is full")

    monkeypatch.setattr(FileSource, "require_room", full)
    for _ in range(3):  # noted, given up, removed
        agent(two, "monitor")
    session_log.close()
    assert two.snapshots("old/private") == []


def test_a_pool_of_a_name_that_meant_another_is_that_other(tmp_path: Path) -> None:
    now, then = (Pool("p", "lvm_thin", Path(), group, "thin") for group in ("vg1", "vg2"))
    sources = Sources(tmp_path)
    opened = [sources.open(Volume("work", "private", pool, "x")) for pool in (now, then)]
    assert [one.pool.title for one in opened if isinstance(one, LvmThinSource)] == [
        "vg1/thin",
        "vg2/thin",
    ]


def test_files_of_others_among_the_state_are_no_volumes(two: Site) -> None:
    for stray in ("work/notes.txt", "notes.txt", "old/private~"):
        (two.state / "volumes" / stray).touch()
    two.backup()
    for command in ("status", "monitor", "check"):
        assert agent(two, command) == 0


def test_one_that_comes_back_is_compared_as_a_whole(two: Site) -> None:
    text, contents = two.config.read_text(), two.contents("old/private")
    take_out(two)
    assert agent(two, "monitor") == 0
    two.config.write_text(text)
    two.image("old/private").write_bytes(contents + b"more")
    two.backup()
    assert list(two.images("old/private").values()) == [contents, contents + b"more"]


def test_a_damaged_state_can_be_forgotten(two: Site) -> None:
    (two.state / "volumes/work/private/state.json").write_text("{")
    assert agent(two, "forget", "work/private", "--yes") == 0
    assert two.snapshots() == []
    two.backup()


def test_an_archive_that_is_removed_holds_nothing(two: Site) -> None:
    fill(two.image(), 5 * GRAIN, 7)
    with two.open(True) as archive:
        made = two.agent(archive)
        made.snapshot("work", "private", bytes(16), 0, int(time.time()))  # which nobody ends
        made.close()
    assert len(two.snapshots()) == 1 and len(two.snapshots("old/private")) == 1
    assert agent(two, "archive", "remove", "tests", "--yes") == 0
    assert two.snapshots() == [] and two.snapshots("old/private") == []


def test_one_damaged_state_or_archive_does_not_hide_the_others(
    two: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    (two.state / "volumes/old/private/state.json").write_text("{")
    two.add_archive("second", two.root / "second")
    for folder in (two.state / "archives").iterdir():
        if '"second"' in (folder / "archive.json").read_text():
            (folder / "archive.json").write_text("[]")
    capsys.readouterr()
    assert agent(two, "archive", "list") == 0
    out, err = capsys.readouterr()
    assert "tests" in out and "is damaged" in err
    assert agent(two, "status") == 0
    out, err = capsys.readouterr()
    assert "work/private: 0.2 MiB" in out and "state.json is damaged" in err
    assert agent(two, "check") == 1
    err = capsys.readouterr().err
    assert "old/private: never backed up" in err and "work/private" not in err
    assert agent(two, "monitor") == 0
    two.backup()
    assert len(two.images("work/private")) == len(two.images("old/private")) == 2


@pytest.mark.parametrize("kind", ["folder", "bytes", "missing", "lines"])
def test_a_configuration_that_cannot_be_read(
    two: Site, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    two.config.unlink()
    if kind == "folder":
        two.config.mkdir()
    elif kind != "missing":
        two.config.write_bytes(b"\xff\xfe" if kind == "bytes" else b"x = [\n\n\n")
    for words in (
        ["status"],
        ["monitor"],
        ["check"],
        ["archive", "list"],
        ["forget", "--all", "--yes"],
    ):
        capsys.readouterr()
        assert agent(two, *words) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"sparsebak-agent: {two.config}: ") and error.count("\n") == 1
