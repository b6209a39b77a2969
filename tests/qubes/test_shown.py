# SPDX-License-Identifier: GPL-2.0-or-later
"""What Qubes' own tools show of backups and restores: when a qube was backed up last, and that one
which is being restored cannot be started.
"""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from dom0_agent.admin import cli, last_backup
from dom0_agent.admin.catalog import ask
from dom0_agent.admin.leftovers import let_start
from dom0_agent.admin.unfinished import OPENING
from dom0_agent.config import Pool, Volume, load
from dom0_agent.qubesd import connect
from dom0_agent.targets.qubesd import RESTORING, TAG, InProgress, QubesImport
from dom0_agent.tracking.state import VolumeState
from tests.kit import change
from tests.qubes.kit import BACKUP_VM, QubesSite
from tests.qubes.qubesd import Qube, Refusal
from wire.status import Refused


def monitor(site: QubesSite, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Qubes whose last backup it noted."""
    capsys.readouterr()
    assert cli.main(["--config", str(site.config), "monitor", "--json"]) == 0
    noted: list[str] = json.loads(capsys.readouterr().out)["noted"]
    return noted


def noted(site: QubesSite) -> dict[str, int]:
    values = {
        name: qube.properties.get("backup_timestamp") for name, qube in site.qubesd.qubes.items()
    }
    return {name: int(value[2]) for name, value in values.items() if value and value[2]}


def test_the_last_backup_is_noted_as_qvm_backup_does(
    qubes: QubesSite, capsys: pytest.CaptureFixture[str]
) -> None:
    before = int(time.time())
    assert monitor(qubes, capsys) == []
    qubes.backup("work/private")
    assert monitor(qubes, capsys) == []  # its settings are not in an archive yet
    qubes.backup()
    assert monitor(qubes, capsys) == ["fedora", "vault", "work"]
    assert noted(qubes).keys() == {"fedora", "vault", "work"}
    assert all(before <= when <= time.time() + 60 for when in noted(qubes).values())
    assert monitor(qubes, capsys) == []  # nothing new
    domain = connect().domains["work"]
    assert domain.backup_timestamp == noted(qubes)["work"]  # as Qube Manager reads it
    domain.backup_timestamp = 1 << 32  # by qvm-backup, later
    qubes.backup()
    monitor(qubes, capsys)
    assert noted(qubes)["work"] == 1 << 32


def test_a_last_backup_is_that_of_all_volumes_in_one_archive(qubes: QubesSite) -> None:
    """As old as the oldest of them: of a template with a root, for one."""
    qubes.backup()
    config = load(qubes.config)
    old = VolumeState(config.state_dir, "fedora", "root")
    with old.locked() as state:
        for follow in state.follows.values():
            one = follow.committed
            assert one is not None
            follow.committed = one._replace(time=one.time - 5000)
        old.save(state)
    whole = last_backup.whole_backups(config, ask(config))
    assert 4900 < whole["work"] - whole["fedora"] < 5100
    with old.locked() as state:
        state.follows = {"00" * 16: next(iter(state.follows.values()))}  # in another archive only
        old.save(state)
    assert last_backup.whole_backups(config, ask(config)).keys() == whole.keys() - {"fedora"}


def test_what_qubesd_does_not_take_is_noted_the_next_time(
    qubes: QubesSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = qubes.qubesd._vm_property

    def refusing(qube: Qube, verb: str, name: str, payload: str) -> str:
        if (verb, name) == ("Set", "backup_timestamp"):
            raise Refusal("QubesException", "not today")
        return real(qube, verb, name, payload)

    qubes.backup()
    with monkeypatch.context() as broken:
        broken.setattr(qubes.qubesd, "_vm_property", refusing)
        assert monitor(qubes, capsys) == []
    assert monitor(qubes, capsys) == ["fedora", "vault", "work"]


def tags(site: QubesSite) -> set[str]:
    return site.qubesd.qubes["work"].tags


def importing(site: QubesSite, volume: str = "private") -> QubesImport:
    place = Volume("work", volume, Pool("qubesd", "qubesd"), "")
    return QubesImport(place, site.image().stat().st_size, load(site.config).state_dir)


def left(site: QubesSite) -> list[Path]:
    return list((load(site.config).state_dir / RESTORING).glob("*"))


def test_a_qube_cannot_be_started_while_it_is_restored(qubes: QubesSite) -> None:
    qubes.backup()
    before = qubes.contents()
    change(qubes.image(), random.Random(1), resize=False)
    target = importing(qubes)
    assert TAG in tags(qubes)
    import qubesadmin.exc  # type: ignore[import-not-found,unused-ignore]

    with pytest.raises(qubesadmin.exc.QubesException, match="cannot start"):
        connect().domains["work"].start()
    target.write(0, [before])
    target.commit()
    assert TAG not in tags(qubes) and not left(qubes) and qubes.contents() == before
    connect().domains["work"].start()


def test_the_tag_goes_however_a_restore_ends(qubes: QubesSite) -> None:
    qubes.backup()
    importing(qubes).discard()
    assert TAG not in tags(qubes) and not left(qubes)
    qubes.start("work")
    with pytest.raises(Refused, match="running"):
        importing(qubes)
    assert TAG not in tags(qubes) and not left(qubes)
    qubes.stop("work")
    qubes.restore()
    assert TAG not in tags(qubes) and not left(qubes)


def test_of_two_volumes_the_one_that_is_restored_last_takes_it_away(qubes: QubesSite) -> None:
    state_dir = load(qubes.config).state_dir
    domain = connect().domains["work"]
    first, second = InProgress(domain, state_dir), InProgress(domain, state_dir)
    first.end()
    assert TAG in tags(qubes) and let_start(state_dir) == []
    second.end()
    assert TAG not in tags(qubes) and not left(qubes)


def test_what_a_killed_restore_left_is_taken_away(qubes: QubesSite) -> None:
    """A tag that is not ours stays: qvm-backup-restore is at work."""
    qubes.backup()
    state_dir = load(qubes.config).state_dir
    qubes.qubesd.qubes["vault"].tags.add(TAG)
    child = os.fork()
    if child == 0:
        InProgress(connect().domains["work"], state_dir)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert TAG in tags(qubes) and left(qubes)
    (state_dir / RESTORING / "gone").touch()  # a qube that was removed since
    assert cli.main(["--config", str(qubes.config), "monitor", "--quiet"]) == 0
    assert TAG not in tags(qubes) and not left(qubes)
    assert TAG in qubes.qubesd.qubes["vault"].tags


@pytest.mark.parametrize("folder", [RESTORING, OPENING])
def test_what_is_no_file_of_ours_there_keeps_no_qube_from_starting(
    qubes: QubesSite, folder: str, capfd: pytest.CaptureFixture[str]
) -> None:
    state_dir = load(qubes.config).state_dir
    (state_dir / RESTORING).mkdir()
    (state_dir / RESTORING / "work").touch()
    qubes.qubesd.qubes["work"].tags.add(TAG)
    (state_dir / folder / "a-folder").mkdir(parents=True)
    os.mkfifo(state_dir / folder / "fifo")
    (state_dir / folder / "gone-with-its-disk").symlink_to("gone-with-its-disk")
    assert cli.main(["--config", str(qubes.config), "monitor", "--quiet"]) == 0
    assert TAG not in tags(qubes) and not (state_dir / RESTORING / "work").exists()
    assert "a-folder cannot be opened: Is a directory" in capfd.readouterr().err


@pytest.mark.parametrize("what", ["list", "tag"])
def test_what_qubesd_refuses_of_it_is_tried_again(
    qubes: QubesSite, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    state_dir = load(qubes.config).state_dir
    (state_dir / RESTORING).mkdir()
    (state_dir / RESTORING / "work").touch()
    qubes.qubesd.qubes["work"].tags.add(TAG)
    real = qubes.qubesd._call

    def refusing(method: str, argument: str, dest: str, payload: bytes) -> str:
        if method == {"list": "admin.vm.List", "tag": "admin.vm.tag.Remove"}[what]:
            raise Refusal("QubesException", "not now")
        return real(method, argument, dest, payload)

    with monkeypatch.context() as patch:
        patch.setattr(qubes.qubesd, "_call", refusing)
        assert let_start(state_dir) == [] and TAG in tags(qubes) and left(qubes)
    assert let_start(state_dir) == ["work"] and TAG not in tags(qubes) and not left(qubes)


def test_a_qube_whose_tag_is_not_set_is_not_restored(
    qubes: QubesSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    qubes.backup()
    before = qubes.contents()
    real = qubes.qubesd._vm_tag

    def refusing(qube: Qube, verb: str, tag: str, payload: str) -> str:
        if (verb, tag) == ("Set", TAG):
            raise Refusal("QubesException", "no tags today")
        return real(qube, verb, tag, payload)

    monkeypatch.setattr(qubes.qubesd, "_vm_tag", refusing)
    with pytest.raises(Refused, match="no tags today"):
        importing(qubes)
    assert not left(qubes) and qubes.contents() == before


def test_a_backup_from_dom0_notes_it_at_once(
    qubes: QubesSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dom0_agent.admin.cli import backup as command

    def backup(domain: object, user: str) -> int:
        qubes.backup()
        return 0

    cli.main(["--config", str(qubes.config), "setup", BACKUP_VM])
    monkeypatch.setattr(command, "_backup", backup)
    assert cli.main(["--config", str(qubes.config), "backup", "--quiet"]) == 0
    assert noted(qubes).keys() == {"fedora", "vault", "work"}
