# SPDX-License-Identifier: GPL-2.0-or-later
"""A session file takes the place of another one of its name and size, as when a copy from before a
prune is put back: whoever writes looks at it before he builds on it.
"""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from backup_vm.archive import sessions
from backup_vm.archive.prune import prune
from backup_vm.archive.storage.local import LocalStorage
from tests.commands import Commands
from tests.kit import GRAIN, Site

CHUNKS = 8
PRUNE = ("prune", "--keep-last", "1", "--max-removed", "100%", "--min-age", "0d")


def back_up(site: Site, seed: int, chunks: int) -> None:
    site.image().write_bytes(
        random.Random(seed).randbytes(chunks * GRAIN) + site.image().read_bytes()[chunks * GRAIN :]
    )
    site.backup()


@pytest.fixture
def old(site: Site) -> tuple[Path, Path]:
    """The newest session's file, which has taken over what the one before it held at the same
    places, and its form from before that, aside.
    """
    site.image().write_bytes(bytes(CHUNKS * GRAIN))
    for seed, chunks in enumerate((CHUNKS, 2, 2)):
        back_up(site, seed, chunks)
    *_, before, path = sorted(site.archive.rglob("*.session"))
    aside = site.root / "aside"
    shutil.copy2(path, aside)
    with site.open(True) as archive:
        (series,) = archive.sessions().values()
        assert prune(archive, [series[-2]]).sessions == 1
    assert not before.exists() and aside.stat().st_size == path.stat().st_size
    assert aside.read_bytes() != path.read_bytes()
    return path, aside


@pytest.mark.parametrize("times", [shutil.copy, shutil.copy2])
def test_no_session_builds_on_what_lacks_its_base(
    site: Site, old: tuple[Path, Path], commands: Commands, times: Callable[[Path, Path], Path]
) -> None:
    path, aside = old
    times(aside, path)
    site.image().write_bytes(bytes(GRAIN) + site.image().read_bytes()[GRAIN:])
    said = commands.run("backup", expect=4)[1]
    assert said.count("spoilt: ") == 1
    with site.open() as archive:
        (series,) = archive.sessions().values()
        assert archive.chain(series, series[-1])[0].full
    key = ("--passphrase-file", str(commands.passphrase))
    commands.run("assemble", "work/private", "-o", str(site.root / "out"), *key)
    assert (site.root / "out").read_bytes() == site.image().read_bytes()


def test_the_right_form_put_back_is_believed(
    site: Site, old: tuple[Path, Path], commands: Commands
) -> None:
    path, aside = old
    right = path.read_bytes()
    shutil.copy2(aside, path)
    commands.run("backup", expect=4)
    path.write_bytes(right)
    commands.run("backup")
    site.verify_all()


def test_they_are_read_once_for_new_times(
    site: Site, old: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = old
    read = list[str]()
    opened = LocalStorage.open

    def noting(self: LocalStorage, name: str) -> object:
        read.append(name)
        return opened(self, name)

    monkeypatch.setattr(LocalStorage, "open", noting)
    for expected in (False, True, False):
        if expected:
            os.utime(path, ns=(1, 1))
        read.clear()
        with site.open(True) as archive:
            assert not archive.found
        assert any(name.endswith(sessions.SUFFIX) for name in read) == expected
