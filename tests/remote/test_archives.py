# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole archives on S3 and SFTP, with networks that fail and keys that may only add."""

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backup_vm.archive import reclaim
from backup_vm.archive.opening import open_archive
from backup_vm.archive.prune import prune
from backup_vm.archive.storage.objects import Entry
from backup_vm.archive.storage.remote import RemoteStorage
from backup_vm.archive.storage.s3 import ObjectStore
from backup_vm.archive.storage.sftp import SftpHost
from backup_vm.errors import ForbiddenError, SparsebakError
from tests.certainty import CutOff
from tests.commands import Commands
from tests.kit import GRAIN, Site, change, fill
from tests.remote.kit import Network, Server

Make = Callable[..., Site]


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RemoteStorage, "pack_size", 4 * GRAIN)


def forget(tmp_path: Path) -> None:
    """As another machine would find it: without the cache."""
    shutil.rmtree(tmp_path / "cache")


def test_a_whole_life(remote_site: Make, tmp_path: Path) -> None:
    site, rng, contents = remote_site(), random.Random(3), []
    site.image().write_bytes(random.Random(1).randbytes(30 * GRAIN))
    for turn in range(4):
        report = site.backup()
        assert report.done[0].full == (turn == 0)
        contents.append(site.contents())
        change(site.image(), rng)
    assert list(site.images().values()) == contents and site.scrubbed() == []
    forget(tmp_path)
    with site.open() as archive:
        assert archive.catalog.count()[0] > 10 and "has been rebuilt" in archive.warnings[0]
    site.image().write_bytes(random.Random(2).randbytes(30 * GRAIN))
    assert not site.backup().done[0].full
    contents.append(site.contents())
    site.restore(0)
    assert site.contents() == contents[0]
    with site.open(True) as archive:
        (series,) = archive.sessions().values()
        stored = sum(archive.storage.size(name) for name in archive.storage.names("packs", ".pack"))
        done = prune(archive, series[:-1])
        left = sum(archive.storage.size(name) for name in archive.storage.names("packs", ".pack"))
        assert done.space == stored - left > 0
    assert list(site.images().values()) == contents[-1:] and site.scrubbed() == []
    forget(tmp_path)
    site.verify_all()


def test_packs_that_are_mostly_dead_are_written_anew(remote_site: Make) -> None:
    site = remote_site()
    site.image().write_bytes(random.Random(1).randbytes(32 * GRAIN))
    site.backup()
    with open(site.image(), "r+b") as file:
        for number in range(32):
            if number % 4:  # of each pack three chunks of four
                file.seek(number * GRAIN)
                file.write(random.Random(number).randbytes(GRAIN))
    site.backup()
    with site.open(True) as archive:
        (series,) = archive.sessions().values()
        before = {
            name: archive.storage.size(name) for name in archive.storage.names("packs", ".pack")
        }
        space = prune(archive, series[:1]).space
        after = {
            name: archive.storage.size(name) for name in archive.storage.names("packs", ".pack")
        }
    assert sum(before.values()) - sum(after.values()) == space > 20 * GRAIN
    assert list(site.images().values()) == [site.contents()] and site.scrubbed() == []


def test_another_machine_prunes_meanwhile(
    remote_site: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = remote_site()
    site.image().write_bytes(random.Random(1).randbytes(32 * GRAIN))
    site.backup()
    with open(site.image(), "r+b") as file:
        file.write(random.Random(2).randbytes(25 * GRAIN + 7))
    site.backup()
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
        with site.open(True) as archive:
            (series,) = archive.sessions().values()
            prune(archive, series[:1])
    with site.open(True) as archive:
        assert archive.warnings == [], "what was moved is found again"
    site.backup()
    assert list(site.images().values())[-1] == site.contents() and site.scrubbed() == []


@pytest.mark.parametrize("after", [0, 3_000, 40_000, 300_000, 700_000, 1_500_000])
def test_the_network_is_cut_for_good_at_some_point(
    remote_site: Make, network: Network, after: int
) -> None:
    site = remote_site(network.port)
    site.image().write_bytes(random.Random(1).randbytes(10 * GRAIN))
    site.backup()
    first = site.contents()
    site.image().write_bytes(random.Random(2).randbytes(30 * GRAIN))
    network.fail_after = after
    network_gone: list[bool] = []

    original = network.cut

    def cut() -> None:
        network.down = True
        network_gone.append(True)
        original()

    network.cut = cut  # type: ignore[method-assign]
    try:
        site.backup()
    except SparsebakError as error:
        assert "cannot be reached" in str(error) and network_gone
    except AssertionError:
        assert network_gone
    network.cut = original  # type: ignore[method-assign]
    network.mend()
    assert next(iter(site.images().values())) == first
    site.backup()
    assert list(site.images().values())[-1] == site.contents()
    assert site.scrubbed() == []
    assert len(site.snapshots()) == 1


def test_a_network_that_fails_again_and_again(
    remote_site: Make, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = remote_site(network.port)
    monkeypatch.setattr("backup_vm.archive.storage.objects.DELAYS", (0.05,) * 30)
    site.image().write_bytes(random.Random(1).randbytes(30 * GRAIN))
    done = network.flap(random.Random(5), 1_200_000)
    try:
        site.backup()
        change(site.image(), random.Random(1))
        site.backup()
    finally:
        done.set()
    assert network.cuts >= 1
    network.mend()
    assert list(site.images().values())[-1] == site.contents() and site.scrubbed() == []


def test_keys_that_may_only_add_are_enough_to_back_up(
    remote_site: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(self: object, name: str) -> None:
        raise ForbiddenError(f"access to {name} is denied")

    site, rng = remote_site(), random.Random(1)
    overwritten: list[str] = []
    for kind in (ObjectStore, SftpHost):
        original = kind.put

        def put(
            self: ObjectStore,
            name: str,
            source: Path,
            old: Entry | None,
            original: Callable[..., str] = original,
        ) -> str:
            if name in {there for there, _ in self.list()}:
                overwritten.append(name)
            return original(self, name, source, old)

        monkeypatch.setattr(kind, "put", put)
        monkeypatch.setattr(kind, "delete", forbidden)
    fill(site.image(), 30 * GRAIN)
    for _ in range(3):
        site.backup()
        change(site.image(), rng)
    assert len(site.images()) == 3 and overwritten == []
    with site.open(True) as archive, pytest.raises(ForbiddenError):
        (series,) = archive.sessions().values()
        prune(archive, series[:1])
    assert len(site.images()) == 3
    site.backup()
    monkeypatch.undo()


def test_as_a_user_runs_it(
    server: Server, commands_for: Callable[[Site], Commands], site: Site
) -> None:
    commands = commands_for(site)
    fill(site.image(), 20 * GRAIN)
    url = server.url(f"by-hand-{random.randrange(1 << 40)}")
    place = ["--archive", url]
    assert "no archive in" in commands.fails(10, *place, "list")
    commands.run(*place, "init", url, "--label", "tests")
    assert "already" in commands.fails(1, *place, "init", url, "--label", "tests")
    commands.run(*place, "backup")
    commands.run(*place, "verify", "--passphrase-file", str(commands.passphrase))
    commands.run(*place, "scrub")
    commands.keyed(*place, "tag", "work", "--add", "gold")
    data = commands.keyed(*place, "status")
    assert data["path"] == url and data["volumes"][0]["verified"]["ok"]
    with open_archive(url, writing=False) as archive:
        files = [*archive.session_files(), *archive.pack_files()[:1]]
    for name in [*files, "archive.toml", "notes.json", "catalog.sqlite"]:
        shown = commands.keyed(*place, "inspect", name)
        assert shown["ok"] and len(shown["fields"]) > 5
    names = [field["value"] for field in commands.keyed(*place, "inspect", files[0])["fields"]]
    assert "work" in names and "private" in names
    known = server.kind == "sftp"  # an object store does not say how much room there is
    assert (data["free"] is not None) == known
    assert ("free space not known" not in commands.run(*place, "status")[0]) == known
    commands.keyed(
        *place, "assemble", "work", "--session", "gold", "-o", str(site.root / "out.img")
    )
    assert (site.root / "out.img").read_bytes() == site.contents()
    if not known:
        error = commands.fails(2, *place, "prune", "--until-free", "10%")
        assert "cannot be determined" in error


@pytest.mark.parametrize("server", ["sftp"], indirect=True)
def test_a_host_that_is_not_known_or_does_not_know_us(
    server: Server, site: Site, commands_for: Callable[[Site], Commands]
) -> None:
    commands, home = commands_for(site), server.folder / "home/.ssh"
    for name, said in (("known_hosts", "connect to it once"), ("config", "[Aa]uthentication")):
        kept = (home / name).read_text()
        (home / name).write_text("")
        error = commands.fails(1, "--archive", server.url("x"), "list")
        (home / name).write_text(kept)
        assert re.search(said, error), error


@pytest.mark.parametrize("server", ["s3", "sftp"], indirect=True)
@pytest.mark.parametrize("first_day", [True, False])
def test_a_run_that_was_cut_and_a_prune_elsewhere(
    first_day: bool,
    server: Server,
    remote_site: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Never two at once: what the first machine's partial session lists is checked then."""
    site = remote_site()
    for seed in (1, 2):
        site.image().write_bytes(random.Random(seed).randbytes(16 * GRAIN))
        site.backup()
    site.image().write_bytes(random.Random(3).randbytes(40 * GRAIN))
    kind: Any = ObjectStore if server.kind == "s3" else SftpHost
    original, puts = kind.put, [0]

    def put(self: Any, name: str, source: Path, old: Entry | None) -> Any:
        puts[0] += name.endswith(".pack")
        if puts[0] > 5:
            raise SparsebakError("cut here")
        return original(self, name, source, old)

    monkeypatch.setattr(kind, "put", put)
    with pytest.raises(SparsebakError, match="cut here"):
        site.backup()
    monkeypatch.setattr(kind, "put", original)
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
        with site.open(True) as archive:
            before = set(archive.pack_files())
            (series,) = archive.sessions().values()
            prune(archive, series[:1])
            # What no session has named stays for a day; then it goes.
            stays = before & set(archive.pack_files())
            assert len(stays) >= 5 and archive.catalog.marks.unclaimed
            if not first_day:
                patch.setattr(reclaim, "UNNAMED", -300.0)
                (series,) = archive.sessions().values()
                prune(archive, series[:0])
                assert len(stays - set(archive.pack_files())) >= 5
                assert not archive.catalog.marks.unclaimed
    assert site.backup().done[0].stored < 40 * GRAIN or not first_day  # the rest was there
    assert list(site.images().values())[-1] == site.contents() and site.scrubbed() == []


@pytest.mark.parametrize("server", ["s3"], indirect=True)
def test_an_interrupted_session_is_seen_and_resumed_elsewhere(
    remote_site: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backup_vm.archive import pack_writer
    from backup_vm.jobs.backup import BackupRun

    monkeypatch.setattr(pack_writer, "RECORD_SECONDS", 0)
    site = remote_site()
    site.image().write_bytes(random.Random(1).randbytes(16 * GRAIN))
    site.backup()
    site.image().write_bytes(random.Random(3).randbytes(40 * GRAIN))
    with site.open(True) as archive, pytest.raises(KeyboardInterrupt):
        agent = site.agent(archive)
        BackupRun(archive, agent, CutOff(30)).run(agent.list())
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
        with site.open(True) as archive:
            assert len(archive.storage.names("volumes", ".unfinished")) == 1
            (series,) = archive.sessions().values()
            assert prune(archive, series[:-1]).chunks == 0
        done = site.backup().done[0]
        assert done.resumed and done.stored < 20 * GRAIN
        assert list(site.images().values())[-1] == site.contents()
    with site.open(True) as archive:
        assert archive.storage.names("volumes", ".unfinished") == []
        assert archive.partials() == []
    assert not site.backup().done[0].full
    site.verify_all()
    assert site.scrubbed() == []


@pytest.mark.parametrize("server", ["s3"], indirect=True)
def test_a_newest_session_that_another_machine_removed_is_not_missed(
    remote_site: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = remote_site()
    for seed in (1, 2):
        site.image().write_bytes(random.Random(seed).randbytes(8 * GRAIN))
        site.backup()
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
        with site.open(True) as archive:
            (series,) = archive.sessions().values()
            prune(archive, series[-1:])
    with site.open(True) as archive:
        assert not archive.found and not archive.lost and not archive.warnings
