# SPDX-License-Identifier: GPL-2.0-or-later
"""Packs that are mostly dead, elsewhere: written again several at once, and whole whatever is cut
off or refused in between.
"""

import contextlib
import itertools
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup_vm.archive import notes, noting, opening
from backup_vm.archive.naming import NOTES_FILE
from backup_vm.archive.opening import open_archive
from backup_vm.archive.prune import Pruned, prune
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.archive.storage.objects import Entry
from backup_vm.archive.storage.remote import RemoteStorage
from backup_vm.errors import ForbiddenError, NoRoomError
from tests.kit import GRAIN, Site
from tests.remote.stores import Slow

URL = "s3://bucket/rewriting"
PACKS = 8


class CutOff(Exception):
    """The end of a run."""


class Watched(Slow):
    """Counts uploads under way at one time, and the changes that there were; ``last``: the one
    after which nothing is served any more.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 0.02)
        self.uploads = self.most_uploads = self.changes = 0
        self.last: int | None = None
        self.full = False
        """Whether there is no room for packs and notes."""
        self.keeps = False
        """Whether packs may not be removed."""
        self._mine = threading.Lock()

    @contextlib.contextmanager
    def _change(self, name: str, upload: bool) -> Iterator[None]:
        if not name.startswith("packs/"):
            yield
            return
        with self._mine:
            self.changes += 1
            if self.last is not None and self.changes > self.last:
                raise CutOff
            self.uploads += upload
            self.most_uploads = max(self.most_uploads, self.uploads)
        try:
            yield
        finally:
            with self._mine:
                self.uploads -= upload

    def put(self, name: str, source: Path, old: Entry | None = None) -> str:
        if self.full and name.startswith(("packs/", NOTES_FILE)):
            raise NoRoomError("HOST cannot store more")
        with self._change(name, True):
            return super().put(name, source, old)

    def delete(self, name: str) -> None:
        if self.keeps and name.startswith("packs/"):
            raise ForbiddenError(f"{name} may not be removed")
        with self._change(name, False):
            super().delete(name)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Two sessions; of each pack of the first one the second one needs a quarter."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(LocalStorage, "pack_size", 4 * GRAIN)
    site, rng = Site(tmp_path / "site"), random.Random(1)
    site.image().write_bytes(rng.randbytes(4 * PACKS * GRAIN))
    site.backup()
    with open(site.image(), "r+b") as image:
        for number in range(4 * PACKS):
            if number % 4:
                image.seek(number * GRAIN)
                image.write(rng.randbytes(GRAIN))
    site.backup()
    return site


@pytest.fixture
def store(site: Site, monkeypatch: pytest.MonkeyPatch) -> Watched:
    found = Watched(site.archive)
    monkeypatch.setattr(opening, "open_storage", lambda _: RemoteStorage(URL, found))
    with open_archive(URL, True) as archive:
        assert archive.catalog.count()[0] > 4 * PACKS
    return found


def pruned() -> tuple[Pruned, list[str]]:
    """What a prune of all but the newest session did, and its warnings."""
    with open_archive(URL, True) as archive:
        ((*old, _),) = archive.sessions().values()
        return prune(archive, old), archive.warnings


def sound(site: Site) -> None:
    """The newest session is whole, and nothing is damaged."""
    assert list(site.images().values())[-1] == site.contents() and site.scrubbed() == []


def size(site: Site) -> int:
    return sum(path.stat().st_size for path in (site.archive / "packs").rglob("*.pack"))


def test_packs_are_written_again_several_at_once(site: Site, store: Watched) -> None:
    before = size(site)
    done, warnings = pruned()
    assert warnings == [] and store.most_uploads > 1
    assert done.space == before - size(site) > 2 * PACKS * GRAIN
    sound(site)


def test_where_there_is_no_room_for_it_that_is_said_and_done_later(
    site: Site, store: Watched
) -> None:
    """Not what keeps every run from beginning, which finds a reclaim that has not ended."""
    before, store.full = size(site), True
    done, (said,) = pruned()
    assert "want of room" in said and "HOST cannot store more" in said and done.space == 0
    assert size(site) == before
    sound(site)
    for _ in range(2):
        done, (said,) = pruned()
        assert "want of room" in said
    store.full = False
    done, warnings = pruned()
    assert warnings == [] and done.space == before - size(site) > 2 * PACKS * GRAIN
    sound(site)


def test_where_there_is_no_room_at_all_the_newest_session_can_be_removed(
    site: Site, store: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written for that, not even a lease; nor is anything else begun without one."""
    before = size(site)

    def refuse(*_: object, **__: object) -> str:
        raise NoRoomError("HOST cannot store more")

    with monkeypatch.context() as full:
        for name in ("put", "make", "put_small"):
            full.setattr(store, name, refuse)
        with pytest.raises(NoRoomError), open_archive(URL, True, "backup"):
            pass
        with open_archive(URL, True, "prune") as archive:
            (series,) = archive.sessions().values()
            done = prune(archive, series[-1:])
    assert (done.sessions, done.space) == (1, before - size(site)) and done.space > PACKS * GRAIN
    assert len(site.images()) == 1 and site.scrubbed() == []


def test_notes_of_what_was_removed_stay_where_there_is_no_room(site: Site, store: Watched) -> None:
    """The prune is done by then; the next one removes them."""
    with open_archive(URL, True) as archive:
        ((old, new),) = archive.sessions().values()
        for session in (old, new):
            noting.checked(archive.storage, True, session.clear.session)
    store.full = True
    done, (said,) = pruned()
    assert done.sessions == 1 and "want of room" in said
    both = {session.clear.session.hex() for session in (old, new)}
    assert notes.load(RemoteStorage(URL, store)).verified.keys() == both
    store.full = False
    pruned()
    assert notes.load(RemoteStorage(URL, store)).verified.keys() == {new.clear.session.hex()}
    sound(site)


def test_a_run_that_is_cut_off_at_any_change(site: Site, store: Watched) -> None:
    left: set[int] = set()
    for store.last in itertools.count(0, 3):
        store.changes = 0
        try:
            pruned()
        except CutOff:
            # no writer looks in between: it would do what is left
            assert list(site.images().values())[-1] == site.contents()
            left.add(size(site))
            continue
        break
    assert len(left) > 1
    store.last = None
    sound(site)
    assert size(site) < 4 * PACKS * GRAIN * 1.2


def test_where_nothing_may_be_removed_no_more_than_a_few_are_there_twice(
    site: Site, store: Watched
) -> None:
    before, store.keeps = size(site), True
    done, warnings = pruned()
    assert len(warnings) == 1 and "may not be removed" in warnings[0] and done.space == 0
    assert size(site) < before + 3 * RemoteStorage.uploads * GRAIN
    sound(site)
    store.keeps = False
    pruned()
    sound(site)
    assert size(site) < 4 * PACKS * GRAIN * 1.2
