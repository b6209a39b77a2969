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
from backup_vm.archive.storage import beneath
from backup_vm.archive.storage.local import LocalStorage
from common.durable import closing_fd
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


def with_its_times(source: Path, target: Path) -> Path:
    """Replace a file by another one, which gets the times of the one that it replaces."""
    times = target.stat()
    shutil.copy(source, target)
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
    return target


def renamed_with_its_times(source: Path, target: Path) -> Path:
    """The same by a rename, as rsync does it."""
    beside = Path(shutil.copy(source, target.parent / "beside"))
    times = target.stat()
    os.utime(beside, ns=(times.st_atime_ns, times.st_mtime_ns))
    return beside.rename(target)


@pytest.mark.parametrize(
    "times", [shutil.copy, shutil.copy2, with_its_times, renamed_with_its_times]
)
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
    looked_through = reading(site, monkeypatch)
    assert not looked_through()
    os.utime(path, ns=(1, 1))
    assert looked_through()
    assert not looked_through()


def reading(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Open the archive to write; whether any session was read for that."""
    read = list[str]()
    opened = LocalStorage.open

    def noting(self: LocalStorage, name: str) -> object:
        read.append(name)
        return opened(self, name)

    def run() -> bool:
        read.clear()
        with site.open(True) as archive:
            assert not archive.found
        return any(name.endswith(sessions.SUFFIX) for name in read)

    monkeypatch.setattr(LocalStorage, "open", noting)
    return run


def test_an_archive_that_was_copied_is_read_once(
    site: Site, old: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = site.archive.with_name("moved")
    shutil.copytree(site.archive, moved)  # with all times that can be set
    site.archive = moved
    looked_through = reading(site, monkeypatch)
    assert [looked_through() for _ in range(3)] == [True, False, False]


def test_times_of_change_do_not_count_where_no_disk_has_them(
    site: Site, old: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = old
    monkeypatch.setattr(beneath, "_KEEPING_CHANGES", frozenset())
    looked_through = reading(site, monkeypatch)
    assert [looked_through() for _ in range(2)] == [True, False]  # made for other stamps
    path.chmod(0o600)  # what a mount may do to all: on exFAT the time of change is made up
    assert not looked_through()


def test_a_file_system_is_known_by_its_name(small_disk: Path, btrfs_folder: Path) -> None:
    for folder, name in ((small_disk, "ext4"), (btrfs_folder, "btrfs"), (Path("/proc"), "proc")):
        with closing_fd(os.open(folder, os.O_RDONLY)) as fd:
            assert beneath.file_system(fd) == name
