# SPDX-License-Identifier: GPL-2.0-or-later
"""Agent and archive operations killed at every durable step: nothing stored is lost, and the next
backup is right.
"""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backup_vm.archive import pack_writer
from backup_vm.archive.prune import prune
from backup_vm.archive.storage.local import LocalStorage
from tests.kit import GRAIN, Site, change, fill
from tests.steps import deaths

SIZE = 20 * GRAIN + 777


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStorage, "pack_size", 3 * GRAIN)
    monkeypatch.setattr(pack_writer, "RECORD_SECONDS", 0)


@pytest.fixture(params=["file", "reflink"])
def built(request: pytest.FixtureRequest, quick_folder: Path) -> Site:
    """A site with three sessions and a change since, to be copied for every death."""
    return three_sessions(request, quick_folder)


@pytest.fixture(params=["file", "reflink"] if os.environ.get("SPARSEBAK_LONG") else ["file"])
def archived(request: pytest.FixtureRequest, quick_folder: Path) -> Site:
    """The same for what is done to an archive alone, in which volumes have no part."""
    return three_sessions(request, quick_folder)


def three_sessions(request: pytest.FixtureRequest, quick_folder: Path) -> Site:
    folder = quick_folder if request.param == "file" else request.getfixturevalue("btrfs_folder")
    site = Site(folder / "site", driver=request.param)
    rng = random.Random(7)
    fill(site.image(), SIZE, 7)
    for _ in range(3):
        site.backup()
        change(site.image(), rng)
    return site


def copies(site: Site) -> Iterator[Site]:
    """Fresh copies of a site, as it is now."""
    while True:
        work = site.root.with_name("work")
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(site.root, work)
        yield Site(work, site.driver, make=False)


def every_death(
    built: Site,
    operation: Callable[[Site], object],
    check: Callable[[Site, dict[str, bytes]], None],
) -> None:
    """Kill ``operation`` at each of its steps on a fresh copy, then check what a user finds
    afterwards.
    """
    before = built.images()
    fresh = copies(built)
    site = next(fresh)

    def attempt() -> None:
        operation(site)

    steps = 0
    for step in deaths(attempt):
        steps = step
        check(site, before)
        site = next(fresh)
    assert steps > 3, "the operation has durable steps, and they were counted"


def nothing_lost(site: Site, before: dict[str, bytes]) -> None:
    found = site.images()
    assert {name: image for name, image in found.items() if name in before} == before


def next_backup_is_right(site: Site, before: dict[str, bytes]) -> None:
    nothing_lost(site, before)
    change(site.image(), random.Random(1), resize=False)
    site.backup()
    assert list(site.images().values())[-1] == site.image().read_bytes()
    assert site.scrubbed() == []
    assert len(site.snapshots()) == 1
    leftovers = [
        path
        for suffix in (".tmp", ".partial", "-restore", ".log")
        for path in site.root.rglob("*" + suffix)
    ]
    assert leftovers == []


def test_backup(built: Site) -> None:
    every_death(built, lambda site: site.backup(), next_backup_is_right)


@pytest.mark.parametrize("recorded", [0, 60])
def test_first_backup(quick_folder: Path, monkeypatch: pytest.MonkeyPatch, recorded: int) -> None:
    """Each pack recorded by itself, or all of them together."""
    monkeypatch.setattr(pack_writer, "RECORD_SECONDS", recorded)
    site = Site(quick_folder / "site")
    fill(site.image(), SIZE)
    every_death(site, lambda site: site.backup(), next_backup_is_right)


def test_monitor(built: Site) -> None:
    every_death(built, lambda site: site.monitor(), next_backup_is_right)


def test_restore(built: Site) -> None:
    """On Btrfs of what differs, into a clone."""
    session = 0
    if built.driver == "reflink":
        session = -1
        built.backup()
        change(built.image(), random.Random(3), resize=False)
    now, wanted = built.image().read_bytes(), list(built.images().values())[session]

    def old_or_new(site: Site, before: dict[str, bytes]) -> None:
        assert site.image().read_bytes() in (now, wanted)
        next_backup_is_right(site, before)

    def restore(site: Site) -> None:
        assert (site.restore(session) < 21) == (session < 0)

    every_death(built, restore, old_or_new)


def test_abort(built: Site) -> None:
    def abort(site: Site) -> None:
        with site.open() as archive:
            agent, entry = site.agent(archive), site.listed(archive)[0]
            offer = agent.snapshot("work", "private", entry.session, 3, 0)
            with agent.extract("work", "private", offer.session, 0) as reply:
                reply.only()
            agent.abort("work", "private", offer.session)

    every_death(built, abort, next_backup_is_right)


@pytest.mark.parametrize("doomed", [[0], [1], [2], [0, 1], [1, 2]])
def test_prune(archived: Site, doomed: list[int]) -> None:
    names = list(archived.images())
    kept = [name for at, name in enumerate(names) if at not in doomed]

    def run(site: Site) -> None:
        with site.open(True) as archive:
            (series,) = archive.sessions().values()
            prune(archive, [series[at] for at in doomed])

    def kept_are_whole(site: Site, before: dict[str, bytes]) -> None:
        found = site.images()
        assert {name: found[name] for name in kept} == {name: before[name] for name in kept}
        assert all(found[name] == before[name] for name in found)
        run_again = [name for at, name in enumerate(names) if at in doomed and name in found]
        if run_again:
            with site.open(True) as archive:
                (series,) = archive.sessions().values()
                prune(archive, [session for session in series if session.name in run_again])
        assert list(site.images()) == kept
        assert site.scrubbed() == []
        site.backup()
        assert list(site.images().values())[-1] == site.image().read_bytes()
        assert site.scrubbed() == []

    every_death(archived, run, kept_are_whole)


def test_catalog_rebuild(archived: Site) -> None:
    def rebuild(site: Site) -> None:
        os.unlink(site.archive / "catalog.sqlite")
        with site.open(True) as archive:
            archive.catalog.count()

    def still_whole(site: Site, before: dict[str, bytes]) -> None:
        nothing_lost(site, before)
        with site.open(True) as archive:
            archive.catalog.count()
        assert site.scrubbed() == []

    every_death(archived, rebuild, still_whole)


def test_the_space_of_pruned_sessions_comes_back_after_a_crash(archived: Site) -> None:
    """Dying between removing sessions and freeing their chunks leaves a sweep that is done by the
    next run.
    """

    def run(site: Site) -> None:
        with site.open(True) as archive:
            (series,) = archive.sessions().values()
            prune(archive, series)

    def empty_in_the_end(site: Site, before: dict[str, bytes]) -> None:
        run_again = site.images()
        with site.open(True) as archive:
            prune(
                archive, [session for series in archive.sessions().values() for session in series]
            )
        assert len(run_again) <= len(before)
        assert not list(site.archive.rglob("*.session")) and not list(site.archive.rglob("*.pack"))

    every_death(archived, run, empty_in_the_end)
