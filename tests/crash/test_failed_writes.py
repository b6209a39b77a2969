# SPDX-License-Identifier: GPL-2.0-or-later
"""dom0's state on a disk on which the n-th change fails, for all n: the call fails, and the next
backup is right.
"""

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from backup_vm.errors import SparsebakError
from tests.failing import Failing, Mode
from tests.kit import GRAIN, Site, change, fill
from wire.status import Refused

SIZE = 12 * GRAIN + 123


def backup(site: Site) -> None:
    site.backup()


def abort(site: Site) -> None:
    with site.open() as archive:
        agent, entry = site.agent(archive), site.listed(archive)[0]
        offer = agent.snapshot("work", "private", entry.session, 3, 0)
        with agent.extract("work", "private", offer.session, 0) as reply:
            reply.only()
        agent.abort("work", "private", offer.session)


def monitor(site: Site) -> None:
    site.monitor()


@pytest.fixture
def built(quick_folder: Path) -> Site:
    site = Site(quick_folder / "built")
    fill(site.image(), SIZE)
    site.backup()
    change(site.image(), random.Random(3), resize=False)
    site.backup()
    with open(site.image(), "r+b") as file:
        for at in range(0, 12, 2):
            file.seek(at * GRAIN)
            file.write(os.urandom(100))
        file.truncate(SIZE + 3 * GRAIN)
    return site


def attempts(built: Site, patch: pytest.MonkeyPatch, mode: Mode) -> Iterator[Any]:
    """A function that runs an action on a copy of the site, its n-th change failing, for n from 1
    on.
    """
    work = built.root.with_name("work")
    faulty = Failing([work / "dom0"], patch)

    def run(action: Callable[[Site], None]) -> Site | None:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(built.root, work)
        site = Site(work, make=False)
        faulty.arm(run.n, mode)  # type: ignore[attr-defined]
        run.failed = False  # type: ignore[attr-defined]
        try:
            action(site)
        except (AssertionError, SparsebakError, Refused, OSError):
            run.failed = True  # type: ignore[attr-defined]
        hit, faulty.nth = faulty.count >= run.n, 0  # type: ignore[attr-defined]
        return site if hit else None

    n = 1
    while True:
        run.n = n  # type: ignore[attr-defined]
        yield run
        n += 1


FULL = Mode(errno.ENOSPC, lasting=True)
SHORT = Mode(errno.ENOSPC, lasting=True, short=True)
ONCE = Mode(errno.EIO)


@pytest.mark.parametrize(
    ("action", "mode"),
    [(backup, FULL), (backup, SHORT), (backup, ONCE), (abort, FULL), (monitor, ONCE)],
    ids=["backup-full", "backup-short", "backup-one", "abort-full", "monitor-one"],
)
def test_every_change_of_the_state(
    built: Site,
    monkeypatch: pytest.MonkeyPatch,
    action: Callable[[Site], None],
    mode: Mode,
) -> None:
    for run in attempts(built, monkeypatch, mode):
        site = run(action)
        if site is None:
            assert run.n > 5
            break
        site.backup()
        images = site.images()  # assembled and proven, each of them
        assert list(images.values())[-1] == site.contents(), run.n
        site.disturb(random.Random(run.n))
        site.backup()
        assert list(site.images().values())[-1] == site.contents(), run.n
        assert len(site.snapshots()) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("pages", [0, 3, 6, 9, 12, 15])
def test_a_state_disk_that_is_full(small_disk: Path, tmp_path: Path, pages: int) -> None:
    """So many pages are free when the log of 900 entries (8 pages) is written, and then the ids."""
    site = Site(tmp_path / "site")
    site.image().write_bytes(b"")
    os.truncate(site.image(), 1000 * GRAIN)
    shutil.move(site.state, small_disk / "dom0")
    site.state = small_disk / "dom0"
    site.config.write_text(
        site.config.read_text().replace('state_dir = "dom0"', f'state_dir = "{site.state}"')
    )
    site.backup()
    with open(site.image(), "r+b") as file:
        for at in range(900):
            file.seek(at * GRAIN)
            file.write(os.urandom(64))
    spare = small_disk / "spare"
    spare.write_bytes(os.urandom(pages * 4096))
    fill_up = small_disk / "fill"
    with pytest.raises(OSError), open(fill_up, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    spare.unlink()
    with suppress(AssertionError, SparsebakError):
        site.backup()
    fill_up.unlink()
    site.backup()
    assert list(site.images().values())[-1] == site.contents()
    site.disturb(random.Random(pages))
    site.backup()
    assert list(site.images().values())[-1] == site.contents()
