# SPDX-License-Identifier: GPL-2.0-or-later
"""Ends that a later run could tell apart are not the same one."""

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.ends import predictable, state
from tests.kit import GRAIN, Site, in_child, punch


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ends")
    site = Site(root / "site")
    site.image().write_bytes(os.urandom(3 * GRAIN))
    site.backup()
    return root


def _copied(stored: Path, to: Path) -> Path:
    """A copy whose catalog was made for its sessions as they are."""
    shutil.copytree(stored, to)
    with Site(to / "site", make=False).open(True):
        pass
    return to


def _pack(root: Path) -> Path:
    (found,) = root.glob("site/archive/packs/*/*")
    return found


def _session(root: Path) -> Path:
    (found,) = root.glob("site/archive/volumes/*/*.session")
    return found


def _flip(root: Path) -> None:
    raw = bytearray(_pack(root).read_bytes())
    raw[100] ^= 1
    _pack(root).write_bytes(raw)


def _give_back(root: Path) -> None:
    """A hole where there were zeros, which has the same bytes."""
    with open(_pack(root), "r+b") as file:
        punch(file.fileno(), 8192, 4096)


def _zero(root: Path) -> None:
    with open(_pack(root), "r+b") as file:
        os.pwrite(file.fileno(), bytes(4096), 8192)


def _write_again(root: Path) -> None:
    shutil.copyfile(_session(root), root / "beside")
    os.replace(root / "beside", _session(root))


def _drop_a_row(root: Path) -> None:
    with contextlib.closing(sqlite3.connect(root / "site/archive/catalog.sqlite")) as database:
        database.execute("DELETE FROM chunks WHERE id = (SELECT min(id) FROM chunks)")
        database.commit()


def _spoil_dom0(root: Path) -> None:
    path = root / "site/dom0/volumes/work/private/state.json"
    fields = json.loads(path.read_bytes())
    path.write_text(json.dumps(fields | {"check": "0" * 32}, indent=1))


CHANGES: tuple[Callable[[Path], object], ...] = (
    _flip,
    _zero,
    _write_again,
    _drop_a_row,
    _spoil_dom0,
    lambda root: _session(root).unlink(),
    lambda root: _session(root).chmod(0o640),
    lambda root: _session(root).with_suffix(".tmp").touch(),
    lambda root: (root / "site/archive/locks/writer-7").write_text('{"released": false}'),
)


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_another_end(stored: Path, tmp_path: Path, change: Callable[[Path], object]) -> None:
    one = _copied(stored, tmp_path / "one")
    before = state(one)
    change(one)
    assert state(one) != before


def test_what_was_given_back_is_told_from_zeros(stored: Path, tmp_path: Path) -> None:
    one = _copied(stored, tmp_path / "one")
    _zero(one)
    before = state(one)
    _give_back(one)
    assert state(one) != before


def test_the_same_end_elsewhere(stored: Path, tmp_path: Path) -> None:
    """Two backups of two copies, each with time, random bytes and place of its own."""
    ends = set()
    for name in ("one", "another"):
        root = _copied(stored, tmp_path / name)
        image = Site(root / "site", make=False).image()
        image.write_bytes(bytes(GRAIN) + image.read_bytes()[GRAIN:])

        def back_up(site: Site = Site(root / "site", make=False)) -> None:  # noqa: B008
            predictable(1, 2e9)
            site.backup()

        assert in_child(back_up) == 0
        ends.add(state(root))
    assert len(ends) == 1
