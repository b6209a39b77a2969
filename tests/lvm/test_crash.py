# SPDX-License-Identifier: GPL-2.0-or-later
"""Killed before every LVM command, every commit point, and at random: no change is lost, nothing is
left over.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from dom0_agent.bitmap import GRAIN
from dom0_agent.sources import metadata_snapshot
from tests.kit import in_child
from tests.lvm.kit import MIB, LvmSite, scribble
from tests.steps import COMMANDS, deaths

Make = Callable[..., LvmSite]


@pytest.fixture
def site(lvm_site: Make, monkeypatch: pytest.MonkeyPatch) -> LvmSite:
    """A site with one session."""
    monkeypatch.setattr(metadata_snapshot, "PATIENCE", 0.3)
    monkeypatch.setattr(metadata_snapshot, "_POLL", 0.1)
    made = lvm_site(size=16 * MIB)
    scribble(made.image(), random.Random(1))
    made.backup()
    return made


def grains(site: LvmSite) -> Iterator[None]:
    """Each step writes a grain that no other step touches, so that a change missed anywhere shows
    in the end.
    """
    fd = os.open(site.image(), os.O_RDWR | os.O_SYNC)
    try:
        for grain in random.Random(3).sample(range(16 * MIB // GRAIN), 16 * MIB // GRAIN):
            os.pwrite(fd, os.urandom(512), grain * GRAIN)
            yield
    finally:
        os.close(fd)


def die_at_every_step(
    site: LvmSite, operation: Callable[[], object], counted: tuple[str, ...]
) -> None:
    writes, last = grains(site), 0
    next(writes)
    for step in deaths(operation, counted):
        next(writes)
        last = step
    writes.close()
    assert last > 5
    site.backup()
    assert list(site.images().values())[-1] == site.contents()
    assert len(site.snapshots()) == 1 and not site.group.held("vm-pool")
    site.verify_all()


def test_monitor_killed_at_every_step(site: LvmSite) -> None:
    die_at_every_step(site, site.monitor, ("Popen", "pwrite", "replace", "unlink"))


def test_backup_killed_before_every_command(site: LvmSite) -> None:
    die_at_every_step(site, site.backup, COMMANDS)


def test_restore_killed_before_every_command(site: LvmSite) -> None:
    old = site.contents()
    for _ in deaths(site.restore, COMMANDS):
        now = site.contents()
        assert now == old
        scribble(site.image(), random.Random(8))
        site.restore()
        assert site.contents() == old
    assert len(site.snapshots()) == 1


def test_many_rotations_killed_at_random(site: LvmSite) -> None:
    rng, writes = random.Random(6), grains(site)
    for _ in range(9):
        next(writes)
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            try:
                site.monitor()
            finally:
                os._exit(0)
        time.sleep(rng.random() * 1.6)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    writes.close()
    assert in_child(site.monitor) == 0
    site.backup()
    assert list(site.images().values())[-1] == site.contents()
    assert len(site.snapshots()) == 1 and not site.group.held("vm-pool")
