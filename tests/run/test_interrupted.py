# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs that are cut off, and resume where they stopped."""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from backup_vm.agent.client import Agent
from backup_vm.archive import pack_writer
from backup_vm.archive.archive import Archive
from backup_vm.archive.sessions import Session
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.errors import DamagedError, SparsebakError
from backup_vm.jobs.backup import BackupRun
from backup_vm.jobs.outcome import Report
from backup_vm.terminal.interrupts import Interrupted
from backup_vm.terminal.progress import Progress
from tests.kit import GRAIN, Site, change, fill, in_child

SIZE = 60 * GRAIN


class CutOff(Progress):
    """Interrupts the run after so many chunks, as Ctrl-C would."""

    def __init__(self, chunks: int) -> None:
        self.left = chunks

    def advance(self, size: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise Interrupted


def run(site: Site, progress: Progress) -> Report:
    with site.open(True) as archive:
        agent = site.agent(archive)
        try:
            return BackupRun(archive, agent, progress).run(agent.list())
        finally:
            agent.close()


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStorage, "pack_size", 3 * GRAIN)


@pytest.mark.parametrize("after", [1, 2, 7, 19])
def test_an_interrupted_run_goes_on(site: Site, after: int) -> None:
    site.image().write_bytes(os.urandom(SIZE))
    first = site.image().read_bytes()
    with pytest.raises(KeyboardInterrupt):
        run(site, CutOff(after))
    change(site.image(), random.Random(3), resize=False)
    report = run(site, Progress())
    resumed, new = report.done
    assert resumed.resumed and resumed.stored <= SIZE + 50 * 60 - (after - 1) * GRAIN
    assert not new.full and not new.resumed
    assert list(site.images().values()) == [first, site.image().read_bytes()]
    assert site.scrubbed() == [] and len(site.snapshots()) == 1


def test_interrupted_again_and_again(site: Site) -> None:
    site.image().write_bytes(os.urandom(SIZE))
    first = site.image().read_bytes()
    site_changes = [os.urandom(SIZE)]
    for _ in range(60):
        try:
            run(site, CutOff(5))
            break
        except KeyboardInterrupt:
            if site_changes:
                site.image().write_bytes(site_changes.pop())
    images = list(site.images().values())
    assert images[0] == first and set(images[1:]) == {site.image().read_bytes()}
    assert site.scrubbed() == []


@pytest.mark.parametrize("recorded", [0, 60])
def test_a_dead_backup_leaves_nothing_behind(
    site: Site, monkeypatch: pytest.MonkeyPatch, recorded: int
) -> None:
    monkeypatch.setattr(pack_writer, "RECORD_SECONDS", recorded)
    site.image().write_bytes(os.urandom(SIZE))

    class Dies(CutOff):
        def advance(self, size: int) -> None:
            self.left -= 1
            if self.left == 0:
                os._exit(9)

    assert in_child(lambda: run(site, Dies(20))) == 9
    done = run(site, Progress()).done[0]
    assert done.resumed and (done.stored < SIZE if recorded == 0 else done.stored > SIZE), (
        "what was recorded is not sent again"
    )
    assert list(site.images().values())[-1] == site.image().read_bytes()
    assert site.scrubbed() == []
    assert not list(site.archive.rglob("*.partial")) and not list(site.archive.rglob("*.tmp"))


def test_what_dom0_forgot_is_sent_again(site: Site) -> None:
    """dom0 lost the log of the session while the archive kept what it had: the rest is hashed, not
    sent.
    """
    site.image().write_bytes(os.urandom(SIZE))
    first = site.image().read_bytes()
    with pytest.raises(KeyboardInterrupt):
        run(site, CutOff(20))
    for log in site.state.rglob("*.log"):
        log.write_bytes(b"")
    report = run(site, Progress())
    assert report.done[0].resumed
    assert list(site.images().values())[0] == first


def test_a_pending_session_the_archive_lost_is_given_up(site: Site) -> None:
    site.image().write_bytes(os.urandom(SIZE))
    with pytest.raises(KeyboardInterrupt):
        run(site, CutOff(20))
    for partial in site.archive.rglob("*.partial"):
        partial.unlink()
    report = run(site, Progress())
    assert len(report.done) == 1 and not report.done[0].resumed
    assert list(site.images().values()) == [site.image().read_bytes()]
    assert len(site.snapshots()) == 1


def test_a_session_that_dom0_began_meanwhile_does_not_pass_for_this_run_s(site: Site) -> None:
    """A call of a run that was killed is still being answered while the next run asks for
    the list.
    """
    site.image().write_bytes(os.urandom(SIZE))
    with site.open(True) as archive:
        agent = site.agent(archive)
        listed = agent.list()
        agent.snapshot("work", "private", bytes(16), 0, 0)
        site.image().write_bytes(os.urandom(SIZE))
        report = BackupRun(archive, agent, Progress()).run(listed)
        agent.close()
    assert not report.failed and [done.resumed for done in report.done] == [False]
    assert list(site.images().values()) == [site.image().read_bytes()]


def test_a_volume_that_gets_lost_on_the_way_is_a_failure(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever leaves a volume without a session: no run ends as if it had one."""
    fill(site.image(), SIZE)
    monkeypatch.setattr(pack_writer.PackWriter, "when_durable", lambda *_: None)
    report = run(site, Progress())
    assert not report.done and [name for name, _ in report.failed] == ["work/private"]


def test_a_failure_belongs_to_the_volume_that_it_is_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One session is stored while the next one arrives; that it cannot be is no failure of the next
    one.
    """
    site = Site(tmp_path / "site", volumes=("a/private", "b/private", "c/private"))
    for name in site.volumes:
        site.image(name).write_bytes(os.urandom(SIZE))
    monkeypatch.setattr(pack_writer, "RECORD_SECONDS", 0)
    really, left = Archive.store_session, [1]

    def store_session(*args: Any) -> Session:
        if left:
            left.pop()
            raise DamagedError("chunks of it are not stored")
        return really(*args)

    monkeypatch.setattr(Archive, "store_session", store_session)
    report = run(site, Progress())
    assert [name for name, _ in report.failed] == ["a/private"]
    assert [done.qube for done in report.done] == ["b", "c"]
    report = run(site, Progress())
    assert not report.failed
    assert [(done.qube, done.resumed) for done in report.done][:2] == [("a", True), ("a", False)]
    assert site.scrubbed() == []


def test_two_runs_keep_apart(site: Site) -> None:
    with site.open(True), pytest.raises(SparsebakError, match="in use"), site.open(True):
        pass
    with site.open(), site.open():
        pass
    with site.open(), pytest.raises(SparsebakError, match="in use"), site.open(True):
        pass


def test_one_failing_volume_does_not_stop_the_others(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    site = Site(
        tmp_path_factory.mktemp("f") / "site", volumes=("a/private", "b/private", "c/private")
    )
    for name in site.volumes:
        fill(site.image(name), SIZE)
    site.image("b/private").unlink()
    report = run(site, Progress())
    assert [done.qube for done in report.done] == ["a", "c"]
    assert [name for name, _ in report.failed] == ["b/private"]


def test_an_agent_that_dies_is_told_and_costs_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dom0_agent.rpc.extraction import Extraction

    fill(site.image(), SIZE)
    site.backup()
    before = list(site.images().values())
    fill(site.image(), SIZE, 3)
    with monkeypatch.context() as patch:
        patch.setattr(Extraction, "_emit", lambda *_: 1 / 0)
        report = run(site, Progress())
        assert report.failed and not report.done
    assert list(site.images().values()) == before
    run(site, Progress())
    assert list(site.images().values())[-1] == site.image().read_bytes()


def test_the_disk_fills_up_during_a_run(site: Site, small_disk: "os.PathLike[str]") -> None:
    archive = Path(small_disk) / "archive"
    shutil.copytree(site.archive, archive)
    site.archive = archive
    site.image().write_bytes(os.urandom(200 * GRAIN))
    first = site.image().read_bytes()
    ballast = Path(small_disk) / "ballast"
    ballast.write_bytes(os.urandom(shutil.disk_usage(small_disk).free - 60 * GRAIN))
    with pytest.raises(SparsebakError, match="may need up to"):
        site.backup()
    assert not site.snapshots() or len(site.snapshots()) == 1
    with site.open(True) as opened:
        agent = site.agent(opened)
        with pytest.raises(SparsebakError, match="is full"):
            BackupRun(opened, agent, Progress(), ignore_free_space=True).run(agent.list())
    assert site.images() == {} and site.scrubbed() == []
    ballast.unlink()
    report = run(site, Progress())
    assert report.done[0].resumed and report.done[0].stored < 180 * GRAIN
    assert list(site.images().values())[0] == first
    assert site.scrubbed() == []


def test_a_prepared_call_that_is_not_made_is_ended(site: Site) -> None:
    agent: Agent = site.agent()
    agent.prepare("Snapshot", "work", "private")
    agent.close()
    fill(site.image(), SIZE)
    site.backup()
    assert len(site.snapshots()) == 1


def test_a_volume_that_failed_to_be_gone_on_with_does_not_stop_the_run(site: Site) -> None:
    """The only volume fails while an interrupted session is being finished: an error, no crash."""
    site.image().write_bytes(os.urandom(SIZE))
    with pytest.raises(KeyboardInterrupt):
        run(site, CutOff(20))
    state = next(site.state.rglob("state.json"))
    whole = state.read_bytes()
    with site.open(True) as archive:
        agent = site.agent(archive)
        listed = agent.list()
        state.write_bytes(b'{"format": 99}')
        report = BackupRun(archive, agent, Progress()).run(listed)
    assert [name for name, _ in report.failed] == ["work/private"] and not report.done
    state.write_bytes(whole)
    run(site, Progress())
    assert list(site.images().values())[-1] == site.image().read_bytes()


def test_an_archive_put_back_is_noticed_before_anything_is_written(site: Site) -> None:
    site.image().write_bytes(os.urandom(SIZE))
    site.backup()
    copy = site.root / "copy"
    shutil.copytree(site.archive, copy)
    site.image().write_bytes(os.urandom(SIZE))
    site.backup()
    shutil.rmtree(site.archive)
    copy.rename(site.archive)
    said: list[tuple[str, int]] = []

    def packs() -> int:
        return len(list(site.archive.rglob("*.pack")))

    before = packs()
    with site.open(True) as archive:
        agent = site.agent(archive)
        archiver = BackupRun(
            archive, agent, Progress(), warn=lambda text: said.append((text, packs()))
        )
        archiver.run(agent.list())
        agent.close()
    assert len(said) == 1 and "lacks session" in said[0][0] and said[0][1] == before
    assert list(site.images().values())[-1] == site.image().read_bytes()
