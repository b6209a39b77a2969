# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole runs with agent and archive in one process: what is restored is what was there, for every
session.
"""

import errno
import fcntl
import os
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backup_vm.agent.call import RefusedError
from backup_vm.archive.prune import prune
from tests.conftest import QuickFolders
from tests.kit import GRAIN, Site, change, fill
from wire.status import Code

SIZE = 40 * GRAIN + 12345


def history(site: Site, runs: int, seed: int) -> list[bytes]:
    """Back a volume up after each of some random changes; returns its contents at each."""
    rng = random.Random(seed)
    fill(site.image(), SIZE, seed)
    contents = []
    for _ in range(runs):
        site.backup()
        contents.append(site.image().read_bytes())
        change(site.image(), rng)
    return contents


@pytest.mark.parametrize("chunk_size", [64 * 1024, 128 * 1024, 1 << 20])
@pytest.mark.parametrize("sealed", [True, False])
def test_every_session_comes_back(
    tmp_path_factory: pytest.TempPathFactory, chunk_size: int, sealed: bool
) -> None:
    for seed in range(4):
        site = Site(
            tmp_path_factory.mktemp("s") / "site",
            sealed=sealed,
            chunk_size=chunk_size,
            suite=1 + seed % 2,
        )
        contents = history(site, 5, seed)
        assert list(site.images().values()) == contents
        assert site.scrubbed() == []


@given(st.integers(0, 1000), st.lists(st.integers(0, 5), min_size=1, max_size=5))
@settings(max_examples=30)
def test_pruning_leaves_all_others_as_they_were(
    quick_folders: QuickFolders, seed: int, order: list[int]
) -> None:
    site = Site(quick_folders.mktemp("p") / "site")
    contents = dict(zip(range(5), history(site, 5, seed), strict=True))
    for at in order:
        with site.open(True) as archive:
            series = next(iter(archive.sessions().values()), [])
            if not series:
                break
            doomed = series[at % len(series)]
            del contents[doomed.clear.sequence - 1]
            prune(archive, [doomed])
        assert list(site.images().values()) == list(contents.values())
        assert site.scrubbed() == []
    site.backup()  # also after the newest was pruned
    assert list(site.images().values())[-1] == site.image().read_bytes()


def test_many_sessions_pruned_at_once(site: Site) -> None:
    contents = history(site, 8, 3)
    with site.open(True) as archive:
        (series,) = archive.sessions().values()
        prune(archive, [series[0], series[1], series[4], series[6]])
    assert list(site.images().values()) == [contents[at] for at in (2, 3, 5, 7)]
    assert site.scrubbed() == []


def test_an_unchanged_chunk_is_not_sent(site: Site) -> None:
    fill(site.image(), SIZE)
    site.backup()
    with open(site.image(), "r+b") as file:
        head = file.read(1)
        file.seek(0)
        file.write(head)
    os.utime(site.image())
    report = site.backup()
    assert (report.done[0].changed, report.done[0].stored) == (0, 0)


def test_an_unchanged_volume_costs_few_waits_for_the_disk(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(site.image(), SIZE, 1)
    site.backup()
    site.backup()  # the first one after which there is a base to stay with
    catalog, waits, fsync = (site.archive / "catalog.sqlite").read_bytes(), [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (waits.append(fd), fsync(fd))[1])
    site.backup()
    assert (site.archive / "catalog.sqlite").read_bytes() == catalog  # not written at all
    assert len(waits) <= 12
    assert len(site.images()) == 3


def test_volumes_and_sessions_share_chunks(tmp_path_factory: pytest.TempPathFactory) -> None:
    site = Site(tmp_path_factory.mktemp("d") / "site", volumes=("work/private", "copy/private"))
    fill(site.image(), SIZE)
    site.image("copy/private").write_bytes(site.image().read_bytes())
    first, second = site.backup().done
    assert first.stored > 0 and second.stored == 0
    fill(site.image(), SIZE, seed=5)
    site.backup()
    fill(site.image(), SIZE, seed=0)
    assert site.backup("work/private").done[0].stored == 0


def test_a_run_has_one_name(tmp_path_factory: pytest.TempPathFactory) -> None:
    site = Site(tmp_path_factory.mktemp("n") / "site", volumes=("a/private", "b/private", "c/root"))
    for _ in range(3):
        assert len({done.session for done in site.backup().done}) == 1
    names = [list(site.images(name)) for name in site.volumes]
    assert names[0] == names[1] == names[2] and len(set(names[0])) == 3


def test_two_archives_follow_one_volume(site: Site) -> None:
    site.add_archive("second", site.root / "second")
    rng, contents = random.Random(1), ([], [])  # type: ignore[var-annotated]
    fill(site.image(), SIZE)
    for step in range(8):
        which = (0, 1, 0, 0, 1, 1, 0, 1)[step]
        report = site.backup(folder=(site.archive, site.root / "second")[which])
        assert report.done[0].full == (not contents[which])
        contents[which].append(site.image().read_bytes())
        change(site.image(), rng)
    assert list(site.images().values()) == contents[0]
    assert list(site.images(folder=site.root / "second").values()) == contents[1]
    assert len(site.snapshots()) == 1


def test_restore_puts_any_session_back(site: Site) -> None:
    contents = history(site, 4, 9)
    for at in (2, 0, 3, 1):
        site.restore(at)
        assert site.image().read_bytes() == contents[at]
    site.backup()
    assert list(site.images().values())[-1] == contents[1]


def test_restore_keeps_owner_and_mode_and_holes(site: Site) -> None:
    fill(site.image(), SIZE)
    os.truncate(site.image(), 100 * GRAIN)
    os.chmod(site.image(), 0o640)
    site.backup()
    site.restore()
    status = os.stat(site.image())
    assert status.st_mode & 0o777 == 0o640
    assert status.st_blocks * 512 < 60 * GRAIN


def test_a_session_goes_only_where_it_belongs(tmp_path_factory: pytest.TempPathFactory) -> None:
    site = Site(tmp_path_factory.mktemp("w") / "site", volumes=("vault/private", "evil/private"))
    fill(site.image("vault/private"), SIZE)
    fill(site.image("evil/private"), SIZE, 1)
    site.backup()
    before = site.image("evil/private").read_bytes()
    with pytest.raises(RefusedError) as refused:
        site.restore(name="vault/private", to="evil/private")
    assert refused.value.refusal == Code.WRONG_VOLUME
    assert site.image("evil/private").read_bytes() == before
    site.config.write_text(
        site.config.read_text() + '[[allow_restore]]\nfrom = "vault/private"\nto = "evil/private"\n'
    )
    site.restore(name="vault/private", to="evil/private")
    assert site.image("evil/private").read_bytes() == site.image("vault/private").read_bytes()


def test_losing_dom0s_state_costs_a_comparison_not_a_resend(site: Site) -> None:
    import shutil

    contents = history(site, 3, 4)
    shutil.rmtree(site.state / "volumes")
    report = site.backup()
    assert report.done[0].full and report.done[0].stored < len(site.image().read_bytes()) // 4
    contents.append(site.image().read_bytes())
    assert list(site.images().values()) == contents
    assert len(site.snapshots()) == 1


def test_a_lost_base_snapshot_is_survived(site: Site) -> None:
    contents = history(site, 3, 5)
    for name in site.snapshots():
        (site.pool / ".sparsebak/work/private" / name).unlink()
    site.backup()
    contents.append(site.image().read_bytes())
    assert list(site.images().values()) == contents


def test_an_archive_put_back_from_an_old_copy_is_noticed(site: Site) -> None:
    import shutil

    fill(site.image(), SIZE)
    site.backup()
    shutil.copytree(site.archive, site.root / "old")
    fill(site.image(), SIZE, 1)
    site.backup()
    shutil.rmtree(site.archive)
    (site.root / "old").rename(site.archive)
    assert site.backup().done[0].full
    assert list(site.images().values())[-1] == site.image().read_bytes()
    assert site.scrubbed() == []


def test_a_lost_commit_is_made_up_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from backup_vm.agent.client import Agent
    from backup_vm.errors import AgentError

    fill(site.image(), SIZE)

    def lost(*_: object) -> Callable[[], None]:
        raise AgentError("the answer got lost")

    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="got lost"):
        patch.setattr(Agent, "ask_commit", lost)
        site.backup()
    first = site.image().read_bytes()
    change(site.image(), random.Random(2), resize=False)
    report = site.backup()
    assert len(report.done) == 1 and not report.done[0].full
    assert list(site.images().values()) == [first, site.image().read_bytes()]


@pytest.mark.parametrize("size", [0, 1, GRAIN - 1, GRAIN, GRAIN + 1])
def test_small_and_empty_volumes(site: Site, size: int) -> None:
    site.image().write_bytes(os.urandom(size))
    site.backup()
    site.image().write_bytes(b"")
    site.backup()
    site.restore(0)
    assert len(site.image().read_bytes()) == size
    assert [len(image) for image in site.images().values()] == [size, 0]


@pytest.mark.parametrize("way", ["refuses alignment", "gives little"])
def test_snapshots_are_read_whole_however_reading_goes(
    site: Site, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    fill(site.image(), 40 * GRAIN + 77)
    original = os.preadv

    def reading(fd: int, views: list[memoryview], at: int) -> int:
        if way == "gives little":
            return original(fd, [views[0][:5000]], at)
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "not aligned enough")
        return original(fd, views, at)

    monkeypatch.setattr(os, "preadv", reading)
    site.backup()
    assert list(site.images().values()) == [site.contents()]


def test_a_snapshot_that_cannot_be_read_fails_its_volume(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(site.image(), 40 * GRAIN)
    site.backup()
    fill(site.image(), 40 * GRAIN, 1)

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    for reading, said in (
        (broken, "cannot read or write the volume"),
        (lambda *_: 0, "the agent failed"),
    ):
        monkeypatch.setattr(os, "preadv", reading)
        with pytest.raises(AssertionError, match=said):
            site.backup()
    monkeypatch.undo()
    site.backup()
    assert list(site.images().values())[-1] == site.contents()
