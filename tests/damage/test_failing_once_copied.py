# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk that fails for a moment while a copy of an archive is read back, or opened: what is there
is not forgotten.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from backup_vm.archive.storage import beneath
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.jobs.copy import Copied, copy
from backup_vm.terminal.progress import Progress
from tests.kit import GRAIN, Site

LARGE = 2 * GRAIN
"""Bytes of a pack."""


@pytest.fixture
def stored(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A session whose chunks are in three packs."""
    monkeypatch.setattr(LocalStorage, "pack_size", LARGE)
    site.image().write_bytes(os.urandom(3 * LARGE))
    site.backup()
    return site


Failing = Callable[[int, int], None]


@pytest.fixture
def opening_fails(monkeypatch: pytest.MonkeyPatch) -> Failing:
    """That from now on a pack below ``copy`` cannot be opened to be read, the n-th time and so many
    times.
    """
    opens, left, times = beneath.Beneath.open, 0, 0

    def failing(self: beneath.Beneath, name: str, flags: int = os.O_RDONLY) -> int:
        nonlocal left
        if name.startswith("packs/") and self.root.name == "copy" and flags == os.O_RDONLY:
            left -= 1
            if -times < left <= 0:
                with self.telling(name):
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opens(self, name, flags)

    def begin(first: int, count: int) -> None:
        nonlocal left, times
        left, times = first, count

    monkeypatch.setattr(beneath.Beneath, "open", failing)
    return begin


def _copied(site: Site) -> Copied:
    with site.open() as archive:
        return copy(archive, str(_place(site)), Progress())


def _place(site: Site) -> Path:
    return site.root / "copy"


def _whole(site: Site) -> None:
    """The copy is the archive, for who only reads it and then for who writes to it."""
    assert site.images(folder=_place(site)) == site.images()
    done = _copied(site)
    assert (done.failed, done.sessions, done.stored) == ([], 0, 0)
    with site.open(True, _place(site)) as archive:
        assert not archive.catalog.doubted_packs() and not archive.catalog.spoilt()
    assert site.images(folder=_place(site)) == site.images()


@pytest.mark.parametrize("turn", range(1, 7))
def test_what_cannot_be_read_back_is_not_forgotten(
    stored: Site, opening_fails: Failing, turn: int
) -> None:
    """Each of three packs is opened for its index, and for its chunks."""
    opening_fails(turn, 1)
    (said,) = _copied(stored).failed
    assert "cannot be read" in said
    _whole(stored)


@pytest.mark.parametrize("turn", range(1, 7))
def test_what_could_not_be_read_back_and_is_damaged_is_sent_again(
    stored: Site, opening_fails: Failing, turn: int
) -> None:
    opening_fails(turn, 1)
    (said,) = _copied(stored).failed
    (path,) = (one for one in _place(stored).rglob("*.pack") if str(one) in said)
    with open(path, "r+b") as file:
        file.seek(GRAIN // 2)
        file.write(b"something else")
    done = _copied(stored)
    assert done.failed == [] and done.stored
    assert stored.images(folder=_place(stored)) == stored.images()


@pytest.mark.parametrize("turn", range(1, 4))
def test_a_pack_that_cannot_be_read_as_the_catalog_is_made_is_read_later(
    stored: Site, opening_fails: Failing, turn: int
) -> None:
    assert not _copied(stored).failed
    (_place(stored) / "catalog.sqlite").unlink()
    opening_fails(turn, 2)  # for its index, and for what can be had without that
    with stored.open(True, _place(stored)) as archive:
        assert archive.catalog.spoilt()
    _whole(stored)


def test_a_pack_that_cannot_be_read_twice_is_damaged(stored: Site, opening_fails: Failing) -> None:
    """Not every opening looks at it again; a scrub does."""
    opening_fails(2, 1 << 30)
    assert _copied(stored).failed
    for _ in range(2):
        with stored.open(True, _place(stored)) as archive:
            assert archive.catalog.spoilt() and not archive.catalog.doubted_packs()
    opening_fails(0, 0)
    assert not _copied(stored).failed
    assert stored.images(folder=_place(stored)) == stored.images()
