# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole runs on a real ZFS pool: what is restored is what was there, for every session, whatever
qubesd or a user does to the volume meanwhile.
"""

import os
import random
from collections.abc import Callable

import pytest

from backup_vm.agent.call import RefusedError
from dom0_agent.sources import Sources
from tests.zfs.kit import MIB, ZfsSite, scribble, zfs

Make = Callable[..., ZfsSite]


def test_every_session_comes_back(zfs_site: Make) -> None:
    site, rng, contents = zfs_site(), random.Random(1), list[bytes]()
    for size in (12, 12, 16, 8):
        if contents and size * MIB != len(contents[-1]):
            site.container.resize("work/private", size * MIB)
        scribble(site.image(), rng)
        site.backup()
        contents.append(site.contents())
        assert len(site.kept()) == 1
    assert list(site.images().values()) == contents
    assert site.scrubbed() == []


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
    assert len(site.kept()) == 1


def test_a_volume_that_is_gone_is_restored(zfs_site: Make) -> None:
    site = zfs_site()
    scribble(site.image(), random.Random(4))
    site.backup()
    before = site.contents()
    zfs("destroy", "-r", site.container.name + "/work/private")
    site.restore()
    assert site.contents() == before


@pytest.mark.parametrize("more", [16 << 10, 4 << 10, 512])
def test_a_volume_of_any_size_comes_back_with_it(zfs_site: Make, more: int) -> None:
    """ZFS has whole blocks only. The next session is what it was: nothing is sent for it."""
    site = zfs_site()
    volume = site.container.name + "/work/private"
    zfs("destroy", "-r", volume)
    site.container.volume("work/private", 8 * MIB + more, block=str(min(more, 16 << 10)))
    scribble(site.image(), random.Random(more))
    site.backup()
    before = site.contents()
    zfs("destroy", "-r", volume)
    site.restore()
    assert site.contents() == before and len(before) == 8 * MIB + more
    (done,) = site.backup("work/private").done
    assert done.changed == 0
    assert [len(one) for one in site.images().values()] == [len(before)] * 2


def test_a_volume_that_is_there_is_not_replaced(zfs_site: Make) -> None:
    """Until it has another name, which keeps the old contents, too."""
    site = zfs_site()
    scribble(site.image(), random.Random(5))
    site.backup()
    scribble(site.image(), random.Random(6))
    before = site.contents()
    with pytest.raises(RefusedError, match="busy"):
        site.restore()
    assert site.contents() == before and len(site.kept()) == 1


def test_no_session_begins_where_room_is_short(zfs_site: Make) -> None:
    site = zfs_site("quota=40M")
    site.config.write_text(site.config.read_text().replace("dataset", "data_limit = 20\ndataset"))
    with open(site.image(), "r+b") as file:
        file.write(os.urandom(11 * MIB))
    zfs("zpool", "sync")
    with pytest.raises(AssertionError, match="storage is full"):
        site.backup()
    assert site.container.ours() == []
