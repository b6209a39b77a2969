# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole runs on a real ZFS pool: what is restored is what was there, for every session, whatever
qubesd or a user does to the volume meanwhile.
"""

import os
import random
from collections.abc import Callable

import pytest

from backup_vm.agent.call import RefusedError
from dom0_agent import targets
from dom0_agent.sources import Sources
from dom0_agent.sources.zfs_pool import ZfsPool
from tests.zfs.kit import MIB, ZfsSite, scribble, zfs
from wire.status import Code, Refused

Make = Callable[..., ZfsSite]


def test_every_session_comes_back(zfs_site: Make) -> None:
    site, rng, contents = zfs_site(), random.Random(1), []
    for size in (12, 12, 16, 8):
        if contents and size * MIB != len(contents[-1]):
            site.container.resize("work/private", size * MIB)
        scribble(site.image(), rng)
        site.backup()
        contents.append(site.contents())
        assert len(site.container.ours()) == 1  # no clone is left
    assert list(site.images().values()) == contents
    site.restore(2)
    assert site.contents() == contents[2]
    kept = zfs(
        "list", "-H", "-p", "-o", "volsize", site.container.name + "/work/private@before-restore"
    )
    assert int(kept) == 8 * MIB
    report = site.backup()
    assert report.done[0].changed < 16 * MIB  # the base is still there
    assert list(site.images().values())[-1] == contents[2]
    site.restore(0)
    assert site.contents() == contents[0]
    assert site.scrubbed() == [] and len(site.container.ours()) == 1
    zfs("rollback", "-r", site.container.name + "/work/private@before-restore")
    assert site.contents() == contents[2]


def test_what_qubesd_does_to_a_volume(zfs_site: Make) -> None:
    """Each of it removes the base: the next session compares by content, and is exact."""
    site, rng = zfs_site("org.qubes-os:part-of-qvm-pool=true", "volmode=dev"), random.Random(2)
    volume = site.container.name + "/work/private"
    clean, tmp = f"{volume}@qubes-clean-abc", site.container.name + "/tmp"
    zfs("snapshot", clean)
    scribble(site.image(), rng)
    site.backup()
    zfs("rollback", "-r", clean)  # qvm-volume revert
    for turn in range(3):
        scribble(site.image(), rng)
        site.backup()
        assert list(site.images().values())[-1] == site.contents()
        if turn == 0:  # qvm-volume import
            zfs("create", "-s", "-V", str(12 * MIB), "-o", "volblocksize=16k", tmp)
            scribble(site.container.device("tmp"), rng)
            zfs("destroy", "-r", volume)
            zfs("rename", tmp, volume)
        elif turn == 1:  # a clone of the volume takes its place, and with it our snapshots
            zfs("snapshot", f"{volume}@qubes:x:1")
            zfs("clone", f"{volume}@qubes:x:1", tmp)
            scribble(site.image(), rng)
            zfs("promote", tmp)
            zfs("destroy", "-r", volume)
            zfs("rename", tmp, volume)
    site.monitor()
    site.verify_all()


def test_a_volume_that_goes_while_it_is_read(zfs_site: Make) -> None:
    """As qubesd removes one that has clones: it promotes the clone, which is ours."""
    site, rng = zfs_site(), random.Random(3)
    volume = site.container.name + "/work/private"
    scribble(site.image(), rng)
    with site.open(True) as archive:
        agent = site.agent(archive)
        (entry,) = agent.list()
        agent.snapshot(entry.qube, entry.volume, bytes(16), 0, 0)
    source = Sources(site.state).open(site.container.place("work/private"))
    os.close(source.open(source.snapshots().pop()))
    (clone,) = [name for name in site.container.listed("volume") if "sparsebak" in name]
    zfs("promote", f"{site.container.name}/{clone}")
    zfs("destroy", "-r", volume)
    zfs("create", "-s", "-V", str(12 * MIB), "-o", "volblocksize=16k", volume)
    scribble(site.image(), rng)
    site.backup()
    assert list(site.images().values())[-1] == site.contents()
    assert len(site.container.ours()) == 1


def test_a_volume_that_is_gone_is_restored(zfs_site: Make) -> None:
    site = zfs_site()
    scribble(site.image(), random.Random(4))
    site.backup()
    before = site.contents()
    zfs("destroy", "-r", site.container.name + "/work/private")
    site.restore()
    assert site.contents() == before


def test_a_volume_in_use_is_not_restored(zfs_site: Make) -> None:
    site = zfs_site()
    scribble(site.image(), random.Random(5))
    site.backup()
    scribble(site.image(), random.Random(6))
    before = site.contents()
    fd = os.open(site.image(), os.O_RDWR | os.O_EXCL)
    with pytest.raises(RefusedError, match="busy"):
        site.restore()
    os.close(fd)
    assert site.contents() == before and len(site.container.ours()) == 1


@pytest.mark.parametrize("turn", range(6))
def test_a_restore_cut_off_leaves_the_old_contents_or_the_new(
    zfs_site: Make, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    """At each command that changes anything, with all that would have followed left out."""
    site = zfs_site()
    scribble(site.image(), random.Random(7))
    old = site.contents()
    site.backup()
    place = site.container.place("work/private")
    change, count = ZfsPool.change, 0

    def cut(self: ZfsPool, *command: str) -> None:
        nonlocal count
        count += 1
        if count > turn:
            raise Refused(Code.SOURCE_FAILED, "cut off")
        change(self, *command)

    new = os.urandom(MIB) + bytes(7 * MIB)
    with monkeypatch.context() as patched:
        patched.setattr(ZfsPool, "change", cut)
        try:
            target = targets.open(place, len(new), site.state)
            target.write(0, [new[:MIB]])
            target.commit()
        except Refused:
            pass
    found = site.contents()
    assert found in (old, new)
    site.backup()
    assert site.contents() == found and list(site.images().values())[-1] == found
    assert len(site.container.ours()) == 1
    kept = [name for name in site.container.listed() if name.endswith("@before-restore")]
    assert len(kept) == (found == new)
    site.restore()
    assert site.contents() == found


def test_a_volume_that_was_written_to_meanwhile_is_not_replaced(zfs_site: Make) -> None:
    site = zfs_site()
    target = targets.open(site.container.place("work/private"), 8 * MIB, site.state)
    target.write(0, [b"new"])
    scribble(site.image(), random.Random(8))
    before = site.contents()
    with pytest.raises(Refused, match="is as it was"):
        target.commit()
    assert site.contents() == before and site.container.ours() == []


def test_no_session_begins_where_room_is_short(zfs_site: Make) -> None:
    site = zfs_site("quota=40M")
    site.config.write_text(site.config.read_text().replace("dataset", "data_limit = 20\ndataset"))
    with open(site.image(), "r+b") as file:
        file.write(os.urandom(11 * MIB))
    zfs("zpool", "sync")
    with pytest.raises(AssertionError, match="storage is full"):
        site.backup()
    assert site.container.ours() == []
