# SPDX-License-Identifier: GPL-2.0-or-later
"""A restore takes what differs from what is there, by what dom0 knows, and the rest stays where it
is: on a real thin pool.
"""

import os
import random
from collections.abc import Callable

import pytest

from backup_vm.agent.call import RefusedError
from dom0_agent.sources.thin_pool import ThinPool
from dom0_agent.targets import lvm
from tests.kit import GRAIN, truly_changed
from tests.lvm.kit import MIB, Group, LvmSite, scribble
from wire.status import Code

Make = Callable[..., LvmSite]


def put(site: LvmSite, at: int, data: bytes) -> None:
    fd = os.open(site.image(), os.O_RDWR)
    os.pwrite(fd, data, at)
    os.fsync(fd)
    os.close(fd)


def used(site: LvmSite) -> int:
    """Blocks of the pool that are in use."""
    return int(site.group.status(site.pool_name)[5].split("/")[0])


@pytest.mark.parametrize(
    ("pool", "chunk_size"), [("vm-pool", 64), ("vm-pool", 256), ("pool-512k", 64), ("pool-2m", 128)]
)
def test_any_session_over_any_contents(lvm_site: Make, pool: str, chunk_size: int) -> None:
    """Chunks smaller and larger than the pool's blocks, which alone are given back."""
    site, rng = lvm_site(pool=pool, chunk_size=chunk_size << 10), random.Random(chunk_size)
    chunks = 12 * 1024 // chunk_size
    for _ in range(3):
        scribble(site.image(), rng)
        site.backup()
    images = list(site.images().values())
    assert site.restore() == 0
    for at in (2, 0, 1):
        scribble(site.image(), rng, 2)
        now = site.contents()
        wanted = site.restore(at)
        assert site.contents() == images[at]
        assert len(truly_changed(now, images[at])) * GRAIN <= wanted * (chunk_size << 10)
        assert wanted < chunks
    site.backup()
    assert list(site.images().values())[-1] == images[1] and len(site.snapshots()) == 1


def test_blocks_stay_shared_and_zeros_are_given_back(lvm_site: Make) -> None:
    site = lvm_site()
    put(site, 0, random.Random(1).randbytes(8 * MIB))
    site.backup()
    before, room = site.contents(), used(site)
    put(site, 3 * MIB + 5, b"changed")
    put(site, 9 * MIB, os.urandom(MIB))
    assert used(site) == room + 17
    assert site.restore() == 17 and site.contents() == before
    assert used(site) <= room + 1, "all is shared with the snapshot but one block"
    assert site.backup().done[0].stored == 0
    assert used(site) <= room
    assert site.restore(whole=True) == 192 and site.contents() == before


def test_other_sizes_take_all(lvm_site: Make) -> None:
    site, rng = lvm_site(), random.Random(2)
    scribble(site.image(), rng)
    site.backup()
    before = site.contents()
    site.group.resize(site.lv(), 16 * MIB)
    scribble(site.image(), rng)
    assert site.restore() == 192 and site.contents() == before


def test_a_volume_that_ends_within_a_block(lvm_site: Make, group: Group) -> None:
    """A pool gives back whole blocks: the part of one at the end keeps what it held."""
    group.pool("pool-192k", block=192)
    site, rng = lvm_site(pool="pool-192k", size=20 * MIB), random.Random(5)
    put(site, MIB, rng.randbytes(MIB))
    site.backup()
    before = site.contents()
    put(site, 3 * MIB, rng.randbytes(17 * MIB))
    site.restore(whole=True)
    assert site.contents() == before


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize(("block", "chunk_size"), [(64, 64), (192, 128), (1024, 64)])
def test_a_pool_that_does_not_zero_its_blocks(
    lvm_site: Make, group: Group, block: int, chunk_size: int, gone: bool
) -> None:
    """Where a block is written in part, its rest is what others left in it; all that is not
    written takes no space.
    """
    pool = f"unzeroed-{block}"
    if pool not in group.pools:
        group.pool(pool, size=40 * MIB, block=block)
        group.lvm("lvchange", "--zero", "n", f"{group.name}/{pool}")
    site = lvm_site(pool=pool, size=200 * MIB, chunk_size=chunk_size << 10)
    rng = random.Random(block)
    for _ in range(8):
        put(site, rng.randrange(200 * MIB - MIB), rng.randbytes(rng.randrange(1, MIB // 2)))
    site.backup()
    before, room = site.contents(), used(site)
    # what is free has been somebody's
    with open(group.volume(pool, "other", 200 * MIB), "r+b") as file:
        file.write(b"theirs! " * ((40 * 1024 // block - room - 2) * block * 128))
        file.flush()
        os.fsync(file.fileno())
    group.lvm("lvremove", "--yes", f"{group.name}/other")
    if gone:
        group.lvm("lvremove", "--yes", f"{group.name}/{site.lv()}")
    site.restore(whole=True)
    assert site.contents() == before
    assert used(site) <= 4 * room  # the whole volume does not fit


def test_a_pool_that_gives_no_block_back_is_not_filled(
    lvm_site: Make, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In it a volume is emptied by zeros, which take space."""
    monkeypatch.setattr(lvm, "_CHECK_SPACE", MIB)
    group.pool("ignoring", size=32 * MIB, block=64)
    for words in (("--activate", "n"), ("--discards", "ignore"), ("--activate", "y")):
        group.lvm("lvchange", *words, f"{group.name}/ignoring")
    site = lvm_site(pool="ignoring", size=256 * MIB)
    put(site, MIB, os.urandom(4 * MIB))
    site.backup()
    put(site, MIB, os.urandom(MIB))
    now = site.contents()
    with pytest.raises(RefusedError) as error:
        site.restore(whole=True)
    assert error.value.refusal == Code.NO_SPACE
    used, total = map(int, site.group.status("ignoring")[5].split("/"))
    assert used < total and site.contents() == now and len(group.snapshots()) == 1


@pytest.mark.parametrize("moment", ["lvcreate", "lvconvert"])
def test_opened_while_it_is_restored(
    lvm_site: Make, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """LVM puts a merge off then: that is no restore, and is said."""
    site, rng, held = lvm_site(), random.Random(2), list[int]()
    scribble(site.image(), rng)
    site.backup()
    before = site.contents()
    scribble(site.image(), rng)
    now, change = site.contents(), ThinPool.change

    def opening(pool: ThinPool, *command: str) -> None:
        if command[0] == moment and not held:
            held.append(os.open(site.image(), os.O_RDONLY))
        change(pool, *command)

    def refused() -> None:
        with pytest.raises(RefusedError) as error:
            site.restore()
        assert error.value.refusal == Code.BUSY

    monkeypatch.setattr(ThinPool, "change", opening)
    refused()
    assert site.contents() == now and len(site.snapshots()) == 1
    os.close(held[0])
    if moment == "lvconvert":
        refused()
        where = f"{site.group.name}/{site.lv()}"
        for to in ("n", "y"):
            site.group.lvm("lvchange", "--activate", to, where)
        assert site.contents() == before
    assert site.restore() == 0 if moment == "lvconvert" else site.restore() > 0
    assert site.contents() == before
    site.backup()
    assert list(site.images().values())[-1] == before
