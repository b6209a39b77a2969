# SPDX-License-Identifier: GPL-2.0-or-later
"""What differs is written to a clone, which takes the place of what is there: in dom0 by Restore,
elsewhere by ``assemble --onto``. Killed at each step, and each call on a disk that fails, on a real
Btrfs: there is the old image or the session's, whole.
"""

import errno
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from backup_vm import cli
from backup_vm.errors import SparsebakError
from tests.crash.test_crash import copies
from tests.failing import CLONING, Failing, Mode
from tests.faults.harness import run
from tests.kit import GRAIN, PASSPHRASE, Site, change, in_child
from tests.steps import DIED, Counter
from wire.status import Refused

LONG = os.environ.get("SPARSEBAK_LONG") == "1"
SAMPLE = 2
"""Steps and calls of each kind in a short run."""
SIZE = 20 * GRAIN + 777
STEPS = ("fsync", "replace", "rename", "unlink", "ftruncate", "pwrite", "ioctl", "open")
MODES = {
    "one fails": Mode(errno.EIO),
    "broken": Mode(errno.EIO, lasting=True),
    "full": Mode(errno.ENOSPC, lasting=True, short=True),
}


@dataclass
class Built:
    """A site with two sessions and a change since; ``old`` is the image now, ``new`` the session
    that is to take its place. ``target``: a file with the old image's contents.
    """

    site: Site
    old: bytes
    new: bytes
    name: str
    target: Path


@pytest.fixture
def built(btrfs_folder: Path) -> Built:
    site = Site(btrfs_folder / "site", driver="reflink")
    rng = random.Random(7)
    site.image().write_bytes(rng.randbytes(SIZE))
    site.backup()
    with open(site.image(), "r+b") as file:
        file.truncate(SIZE)
        file.seek(3 * GRAIN)
        file.write(bytes(2 * GRAIN))
    site.backup()
    name, new = list(site.images().items())[-1]
    change(site.image(), rng, resize=False)
    with open(site.image(), "r+b") as file:
        file.seek(3 * GRAIN)
        file.write(rng.randbytes(3 * GRAIN))
    (site.root / "pw").write_bytes(PASSPHRASE)
    target = site.root / "there.img"
    shutil.copyfile(site.image(), target)
    return Built(site, site.contents(), new, name, target)


def numbers(most: int) -> Iterator[int]:
    """Which calls are to fail, of so many."""
    assert most > 3
    if LONG:
        yield from range(1, most + 1)
    else:
        yield from sorted({1 + at * (most - 1) // (SAMPLE - 1) for at in range(SAMPLE)})


def onto(site: Site, name: str) -> int:
    os.environ["SPARSEBAK_ARCHIVE"] = str(site.archive)
    words = ["-u", "assemble", "work/private", "--session", name, "--yes"]
    words += ["--onto", str(site.root / "there.img"), "--passphrase-file", str(site.root / "pw")]
    return cli.main(["--config", "/dev/null", *words])


def onto_is_whole(built: Built, site: Site, done: bool) -> None:
    target = site.root / "there.img"
    assert target.read_bytes() == built.new or (not done and target.read_bytes() == built.old)
    again = run(lambda: onto(site, built.name))
    assert again.code == 0 and target.read_bytes() == built.new, again.text


def test_assembling_onto_an_image_killed_at_each_step(built: Built) -> None:
    fresh = copies(built.site)

    def dying(fatal: int, site: Site, told: Path) -> int:
        def die() -> None:
            counter = Counter(fatal)
            counter.install(STEPS)
            assert onto(site, built.name) == 0
            told.write_text(str(counter.done))

        return in_child(die)

    told = built.site.root.parent / "steps"
    assert dying(0, next(fresh), told) == 0
    for fatal in numbers(int(told.read_text())):
        site = next(fresh)
        code = dying(fatal, site, told)
        assert code in (0, DIED), fatal
        onto_is_whole(built, site, code == 0)


@pytest.mark.parametrize("mode", MODES if LONG else ["one fails"])
def test_assembling_onto_an_image_where_calls_fail(built: Built, mode: str) -> None:
    fresh, told = copies(built.site), built.site.root.parent / "calls"

    def failing(nth: int, site: Site) -> int:
        with pytest.MonkeyPatch.context() as patched:
            calls = Failing([site.root / "there.img", site.archive], patched, CLONING)
            calls.arm(nth, MODES[mode])
            code = onto(site, built.name)
        told.write_text(str(calls.count))
        return code

    assert run(partial(failing, 0, next(fresh))).code == 0
    for nth in numbers(int(told.read_text())):
        site = next(fresh)
        outcome = run(partial(failing, nth, site))
        assert not list(outcome.problems()), (nth, list(outcome.problems()))
        onto_is_whole(built, site, outcome.code == 0)
        if mode == "one fails":
            assert not list(site.root.glob("*.part")), nth


@pytest.mark.parametrize("mode", MODES if LONG else ["one fails"])
def test_restoring_what_differs_where_calls_fail(
    built: Built, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In dom0: its state and its pool."""
    fresh, work = copies(built.site), built.site.root.with_name("work")
    calls = Failing([work / "pool", work / "dom0"], monkeypatch, CLONING)

    def restored(nth: int) -> tuple[Site, int, bool]:
        site, done = next(fresh), False
        calls.arm(nth, MODES[mode])
        try:
            site.restore()
            done = True
        except (SparsebakError, Refused, OSError):
            pass
        count = calls.count
        calls.arm(0, MODES[mode])
        return site, count, done

    _, most, done = restored(0)
    assert done
    for nth in numbers(most):
        site, _, done = restored(nth)
        contents = site.contents()
        assert contents == built.new or (not done and contents == built.old), nth
        site.backup()
        assert list(site.images().values())[-1] == contents, nth
        site.restore()
        site.backup()
        assert site.contents() == contents and len(site.snapshots()) == 1, nth
        assert not list(site.root.rglob("*-restore")) and site.scrubbed() == [], nth
