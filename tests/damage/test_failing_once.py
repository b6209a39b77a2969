# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk that fails for a moment while sessions are removed: what was read before cannot be read
now, and can be again afterwards.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backup_vm.archive import notes, sessions
from backup_vm.archive import prune as pruning
from backup_vm.archive import reclaim as reclaiming
from backup_vm.archive.archive import Archive
from backup_vm.archive.pack_writer import PackWriter
from backup_vm.archive.prune import prune
from backup_vm.archive.sessions import Session
from backup_vm.archive.storage.beneath import Beneath
from backup_vm.errors import DamagedError, Exit
from backup_vm.jobs import thinning
from tests.commands import Commands
from tests.kit import GRAIN, Site

VOLUMES = ("work/private", "other/private")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sessions of two volumes."""
    site = Site(tmp_path_factory.mktemp("failing") / "site", volumes=VOLUMES)
    for turn in range(3):
        for name in VOLUMES:
            with open(site.image(name), "r+b") as file:
                file.truncate(6 * GRAIN)
                file.seek(turn * GRAIN)
                file.write(os.urandom(2 * GRAIN))
        site.backup()
    return site.root


@pytest.fixture
def stored(built: Path, tmp_path: Path) -> Site:
    """A copy."""
    shutil.copytree(built, tmp_path / "site")
    return Site(tmp_path / "site", volumes=VOLUMES, make=False)


@contextmanager
def _unreadable(monkeypatch: pytest.MonkeyPatch, doomed: str) -> Iterator[None]:
    """A session file cannot be read meanwhile."""
    load = sessions.load

    def failing(storage: Any, name: str) -> Session:
        if name == doomed:
            raise DamagedError(f"{name} cannot be read")
        return load(storage, name)

    with monkeypatch.context() as patch:
        patch.setattr(sessions, "load", failing)
        yield


def _series(archive: Archive) -> list[list[Session]]:
    return [*archive.sessions().values()]


def _whole(site: Site) -> None:
    """Nothing is wrong, nor is the catalog, and all that a prune has to give back it gives."""
    assert site.scrubbed() == []
    with site.open(True) as archive:
        prune(archive, [])
        assert not archive.catalog.marks.unclaimed
        size = sum(archive.storage.allocated(name) for name in archive.pack_files())
        archive.rebuild_catalog()
        prune(archive, [])
        assert sum(archive.storage.allocated(name) for name in archive.pack_files()) == size


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Folders that cannot be listed."""
    folders: set[str] = set()
    entries = Beneath.entries

    def failing(self: Beneath, folder: str) -> Any:
        if folder in folders:
            raise DamagedError(f"{folder} cannot be read")
        return entries(self, folder)

    monkeypatch.setattr(Beneath, "entries", failing)
    yield folders


@pytest.mark.parametrize("entirely", [True, False])
def test_a_folder_that_cannot_be_listed_is_not_removed(
    stored: Site, unseen: set[str], entirely: bool
) -> None:
    with stored.open(True) as archive:
        first, other = _series(archive)
        volume = first[0].volume
        whole = {volume} if entirely else set[str]()
        unseen.add(f"volumes/{volume}")
        doomed = first if entirely else first[:1]
        with pytest.raises(DamagedError, match="nothing was pruned"):
            prune(archive, doomed, whole)
        done = prune(archive, [*doomed, other[0]], whole)
        assert [line for line in done.refused if volume in line]
        unseen.clear()
        assert {session.file for session in first} <= set(archive.session_files())
        assert other[0].file not in archive.session_files()
    _whole(stored)


def test_what_rules_could_not_see_is_named_once(stored: Site, unseen: set[str]) -> None:
    """A folder that is not listed as rules look for what goes; a later run knows of it."""
    with stored.open(True) as archive:
        first, other = _series(archive)
        unseen.add(f"volumes/{first[0].volume}")
        assert len(_series(archive)) == 1
        done = prune(archive, [other[0]])
        assert [line for line in done.refused if first[0].volume in line]
    with stored.open(True) as archive:
        assert not prune(archive, [other[1]]).refused
        unseen.clear()
    _whole(stored)


def test_a_backup_says_what_its_prune_could_not_remove(
    stored: Site,
    commands_for: Callable[[Site], Commands],
    unseen: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands, judge = commands_for(stored), thinning.judge

    def failing(contents: Any, *args: Any) -> Any:
        verdicts = judge(contents, *args)
        unseen.add(f"volumes/{contents.volumes[0].id}")
        return verdicts

    commands.settings(
        f'archive = "{stored.archive}"\nagent = "local:{stored.config}"\n'
        '[prune]\nkeep_last = 1\nmin_age = "0d"\nmax_removed = "100%"\nafter_backup = true\n'
    )
    monkeypatch.setattr(thinning, "judge", failing)
    _, error = commands.run("backup", expect=Exit.DAMAGED)
    assert "left as it is" in error


def test_what_cannot_be_read_keeps_its_tags(stored: Site, unseen: set[str]) -> None:
    """It may be readable again, or put back, and a tag may be all that keeps it."""
    with stored.open(True) as archive:
        first, other = _series(archive)
        tagged = first[0].clear.session

        def tag(every: notes.Notes) -> None:
            every.sessions[tagged.hex()] = notes.Note(frozenset({"kept"}))

        notes.change(archive.storage, tag)
        unseen.add(f"volumes/{first[0].volume}")
        prune(archive, [other[0]])
        unseen.clear()
        assert notes.load(archive.storage).of(tagged).tags == {"kept"}


def test_a_volume_that_nobody_can_list_is_not_called_removed(
    stored: Site, unseen: set[str]
) -> None:
    """As ``delete`` by its id, where no name is known."""
    with stored.open(True) as archive:
        volume = _series(archive)[0][0].volume
    unseen.add(f"volumes/{volume}")
    with stored.open(True) as archive:
        archive.sessions()
        with pytest.raises(DamagedError, match="nothing was pruned"):
            prune(archive, [], {volume})
    unseen.clear()
    _whole(stored)


@pytest.mark.parametrize("place", range(3))
def test_a_session_that_cannot_be_read_as_its_volume_is_removed(
    stored: Site, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """It goes, and what it named is given back, too."""
    with stored.open(True) as archive:
        first, _ = _series(archive)
        doomed = first[place].file
        with _unreadable(monkeypatch, doomed):
            prune(archive, first, {first[0].volume})
        assert not {session.file for session in first} & set(archive.session_files())
    _whole(stored)


def test_a_session_that_cannot_be_read_as_it_is_removed_is_named(
    stored: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stored.open(True) as archive:
        first, other = _series(archive)
        doomed = first[-1].file
        with _unreadable(monkeypatch, doomed):
            done = prune(archive, [first[-1], other[-1]])
        assert [line for line in done.refused if doomed in line]
        assert doomed in archive.session_files()
    _whole(stored)


@pytest.mark.parametrize("turn", range(3))
def test_a_pack_that_cannot_be_read_is_looked_at_again(
    stored: Site, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    """What nothing refers to there neither stays in the catalog nor in the pack for ever."""
    indexes = reclaiming.packs.indexes

    def failing(*args: Any) -> Iterator[tuple[str, Any]]:
        for number, (name, index) in enumerate(indexes(*args)):
            yield name, DamagedError(f"{name} cannot be read") if number == turn else index

    with stored.open(True) as archive:
        first, _ = _series(archive)
        with monkeypatch.context() as patch:
            patch.setattr(reclaiming.packs, "indexes", failing)
            prune(archive, first, {first[0].volume})
    _whole(stored)


def test_what_a_partial_session_named_is_looked_at_again(stored: Site) -> None:
    """A session that cannot be read as it is dropped: its chunks leave the catalog later."""
    with stored.open(True) as archive:
        marks = archive.catalog.marks

        class Dropped:
            def ids(self) -> list[bytes]:
                return []

            def discard(self) -> None:
                archive.damaged["volumes/x"] = DamagedError("it cannot be read")

        pruning.drop_partial(archive, Dropped())  # type: ignore[arg-type]
        assert marks.storing
        writer = PackWriter(archive)
        writer.finish()
        writer.close()
        assert marks.storing
