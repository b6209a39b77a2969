# SPDX-License-Identifier: GPL-2.0-or-later
"""What a call that is killed leaves in a ZFS pool: the next monitor removes it, and no volume is
kept from being removed meanwhile.
"""

import os
import pkgutil
import random
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest

from dom0_agent.admin import cli
from dom0_agent.sources import Sources
from dom0_agent.sources.zfs_pool import ZfsPool
from dom0_agent.tracking.state import VolumeState
from tests.kit import in_child
from tests.zfs.kit import ZfsSite, scribble, zfs

Make = Callable[..., ZfsSite]
BACKUP, RESTORE = "backup", "restore"
VOLUME = "work/private"
WHEN = {
    "a snapshot that no state mentions": ("dom0_agent.sources.zfs.ZfsSource.snapshot", BACKUP),
    "a session that is being read": ("dom0_agent.sources.zfs.ZfsSource.open", BACKUP),
    "a session that is not committed": ("dom0_agent.tracking.rotation.Rotation.commit", BACKUP),
    "a snapshot of the monitor's": ("dom0_agent.sources.zfs.ZfsSource.snapshot", "monitor"),
    "an old base": ("dom0_agent.tracking.state.VolumeState.save", "monitor"),
    "new contents that begin": ("dom0_agent.targets.zfs.ZfsReplacement.__init__", RESTORE),
    "new contents, in part": ("dom0_agent.targets.zfs.ZfsReplacement.write", RESTORE),
    "new contents without their name": ("rename", RESTORE),
}


@pytest.fixture
def site(zfs_site: Make) -> ZfsSite:
    site = zfs_site()
    scribble(site.image(), random.Random(1))
    site.backup()
    scribble(site.image(), random.Random(2))
    return site


def die_in(name: str) -> None:
    """In this process, die at the end of a function; or before a volume is renamed."""
    where, function = ("", "change") if name == "rename" else name.rsplit(".", 1)
    of: Any = pkgutil.resolve_name(where) if where else ZfsPool
    real = getattr(of, function)

    def die(*words: Any, **named: Any) -> Any:
        if where or "rename" in words:
            if where:
                real(*words, **named)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*words, **named)

    setattr(of, function, die)


def killed(site: ZfsSite, when: str) -> None:
    name, act = WHEN[when]
    if act == RESTORE:
        zfs("destroy", "-r", f"{site.container.name}/{VOLUME}")

    def run() -> None:
        die_in(name)
        getattr(site, act)()

    assert in_child(run) == -signal.SIGKILL


def monitor(site: ZfsSite) -> None:
    assert cli.main(["--config", str(site.config), "monitor", "--quiet"]) == 0


def take_out(site: ZfsSite) -> None:
    """What an administrator does whose qube is gone."""
    text = site.config.read_text()
    site.config.write_text(re.sub(r"\[\[volume\]\][^\[]*", "", text))


@pytest.mark.parametrize("when", WHEN)
def test_what_is_left_goes_at_the_next_monitor(site: ZfsSite, when: str) -> None:
    restoring = WHEN[when][1] == RESTORE
    killed(site, when)
    monitor(site) if not restoring else cli.main(["--config", str(site.config), "monitor", "-q"])
    assert [name for name in site.container.listed("volume") if "sparsebak" in name] == []
    if restoring:
        assert site.container.ours() == []
        site.restore()
        return
    state = VolumeState(site.state, "work", "private").load()
    assert len(site.container.ours()) == len(state.snapshots())
    site.backup()
    assert list(site.images().values())[-1] == site.contents()
    assert len(site.kept()) == 1


@pytest.mark.parametrize("when", WHEN)
def test_what_is_left_of_a_volume_that_is_gone_goes_too(site: ZfsSite, when: str) -> None:
    killed(site, when)
    take_out(site)
    if WHEN[when][1] != RESTORE:
        monitor(site) if "read" not in when else None
        remove_as_qubesd(site)
    monitor(site)
    assert site.container.ours() == []


def remove_as_qubesd(site: ZfsSite) -> None:
    """As core-admin's ``qubes/storage/zfs.py`` does it: what is a clone of one of the volume's
    snapshots gets that snapshot, and then the volume goes.
    """
    volume = f"{site.container.name}/{VOLUME}"
    listed = zfs("list", "-Hp", "-t", "snapshot", "-o", "name", "-s", "creation", volume)
    for snapshot in listed.splitlines():
        for clone in zfs("get", "-Hp", "-o", "value", "clones", snapshot).strip().split(","):
            if clone not in ("-", "", volume):
                zfs("promote", clone)
    zfs("destroy", "-r", volume)


def test_a_volume_goes_while_two_sessions_of_it_are_read(site: ZfsSite) -> None:
    source, opened = Sources(site.state).open(site.container.place(VOLUME)), []
    for number in (7, 8):
        scribble(site.image(), random.Random(number))
        source.snapshot(number)
        opened.append(source.open(number))
    remove_as_qubesd(site)
    for fd in opened:
        assert os.pread(fd, 10, 0) is not None
        os.close(fd)
    take_out(site)
    for _ in range(2):  # a clone that another one builds on goes after it
        cli.main(["--config", str(site.config), "monitor", "--quiet"])
    assert site.container.ours() == []
    assert not any("sparsebak" in name for name in site.container.listed("volume"))
