# SPDX-License-Identifier: GPL-2.0-or-later
"""What makes room dies on a disk that is full to its last byte, with the room in its hands that is
kept for it, or with the catalog on another disk: what stays is whole, a backup that comes next does
not take that room, and room is made all the same. powercut/full.py cuts the power there.
"""

import os
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from backup_vm.archive import reserve
from backup_vm.archive.archive import Archive
from backup_vm.archive.opening import open_archive
from backup_vm.archive.prune import prune
from backup_vm.archive.scrub import scrub
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.errors import SparsebakError
from backup_vm.terminal.progress import Progress
from tests.conftest import in_memory, mounted
from tests.full_disk import BALLAST, fill
from tests.kit import GRAIN, Site, in_child
from tests.patience import until
from tests.steps import EVERYTHING, SPACE, deaths

FULL = 28
"""How a backup ends that found the disk full."""
LONG = os.environ.get("SPARSEBAK_LONG") == "1"
NAMES = ("work/private", "other/private")


@dataclass
class Full:
    """A site whose archive is on a disk that is full, and an image of that disk, to be put back."""

    site: Site
    disk: Path
    image: Path
    before: dict[str, dict[str, bytes]]

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """That disk as it was, mounted."""
        copy = self.image.with_suffix(".copy")
        subprocess.run(["cp", "--sparse=always", self.image, copy], check=True)
        subprocess.run(["mount", "-o", "loop", copy, self.disk], check=True)
        try:
            yield
        finally:
            until(lambda: not subprocess.run(["umount", self.disk], check=False).returncode)
            copy.unlink()

    @property
    def kept(self) -> Path:
        return self.site.archive / reserve.NAME


@pytest.fixture(params=["with room kept", "with none"])
def full(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Full]:
    monkeypatch.setattr(LocalStorage, "pack_size", 3 * GRAIN)
    disk, image = tmp_path / "disk", tmp_path / "disk.img"
    made = mounted(image, disk, 24 << 20, ["mkfs.ext4", "-q"], "loop")
    next(made)
    site = Site(tmp_path / "site", volumes=NAMES)
    shutil.move(site.archive, disk / "archive")
    site.archive = disk / "archive"
    rng = random.Random(7)
    for _ in range(4):
        for name in NAMES:
            with open(site.image(name), "r+b") as file:
                file.seek(rng.randrange(4) * GRAIN)
                file.write(rng.randbytes(8 * GRAIN))
        site.backup()
    fill(disk)
    if request.param == "with none":
        (site.archive / reserve.NAME).rename(disk / BALLAST / "kept")
    before = {name: site.images(name) for name in NAMES}
    subprocess.run(["sync", "-f", disk], check=True)
    kept = image.with_suffix(".kept")
    subprocess.run(["cp", "--sparse=always", in_memory(image), kept], check=True)
    with pytest.raises(StopIteration):
        next(made)
    yield Full(site, disk, kept, before)


def back_up(site: Site) -> None:
    """Until the disk is full."""
    from backup_vm.jobs.backup import BackupRun

    BackupRun._check_space = lambda *_: None  # type: ignore[method-assign]
    try:
        site.backup()
    except (AssertionError, OSError, sqlite3.Error, SparsebakError) as error:
        assert "full" in str(error) or "No space left" in str(error)
        os._exit(FULL)


def prune_all_but(archive: Archive, number: int) -> None:
    """Remove all sessions but so many of each volume."""
    prune(archive, [one for series in archive.sessions().values() for one in series[:-number]])


def prune_second(archive: Archive) -> None:
    prune(archive, [series[1] for series in archive.sessions().values()])


def delete(archive: Archive) -> None:
    volume, series = next(iter(archive.sessions().items()))
    prune(archive, series, {volume})


def scrub_all(archive: Archive) -> None:
    assert not [*scrub(archive, Progress())]


WORK = {"prune": prune_second, "delete": delete, "scrub": scrub_all}
MAY_GO = {
    "prune": [[], [1]],
    "delete": [[], [3], [2, 3], [1, 2, 3], [0, 1, 2, 3]],
    "scrub": [[]],
}
"""Which sessions of a volume, counted from the oldest, may be gone together."""


@pytest.mark.parametrize("command", WORK if LONG else ["prune"])
def test_a_death_on_a_full_disk(full: Full, command: str) -> None:
    site, steps = full.site, 0

    def work(name: str, action: Callable[[Archive], None]) -> None:
        with open_archive(site.archive, True, name) as archive:
            action(archive)

    every = deaths(lambda: work(command, WORK[command]), (*EVERYTHING, SPACE), 1 if LONG else 60)
    while True:
        with full.fresh():
            try:
                steps = next(every)
            except StopIteration:
                break
            found = {name: site.images(name) for name in NAMES}
            for name, images in full.before.items():
                assert all(images[one] == image for one, image in found[name].items()), steps
                gone = [at for at, one in enumerate(images) if one not in found[name]]
                assert gone in MAY_GO[command], steps
            if steps % 2:
                for name in NAMES:
                    site.image(name).write_bytes(os.urandom(400 * GRAIN))
                assert in_child(lambda: back_up(site)) == FULL
            work("prune", lambda archive: prune_all_but(archive, 1))
            for name in NAMES:
                newest = [*found[name].items()][-1:]
                assert [*site.images(name).items()] == newest, steps
            assert full.kept.stat().st_blocks, f"room is kept again after step {steps}"
            assert site.scrubbed() == []
    assert steps > 10
