# SPDX-License-Identifier: GPL-2.0-or-later
"""Qubes that are renamed, deleted and made again, as qubesd's UUIDs tell it and as an administrator
does.
"""

import os
import random
from pathlib import Path

import pytest

from backup_vm.agent.call import RefusedError
from backup_vm.jobs.feeding import feed
from backup_vm.terminal.progress import Progress
from backup_vm.volumes import stored_volumes
from common.text import session_name
from dom0_agent.admin import cli
from dom0_agent.catalog import open_catalog
from dom0_agent.config import load
from dom0_agent.tracking import identities
from tests.kit import change, fill
from tests.qubes.kit import SIZE, QubesSite
from wire.names import Restoring
from wire.status import Code


def agent(site: QubesSite, *words: str) -> int:
    return cli.main(["--config", str(site.config), *words])


def move(site: QubesSite, old: str, new: str) -> None:
    """A qube gets another name, and keeps its UUID and its volumes."""
    site.qubesd.qubes[new] = site.qubesd.qubes.pop(old)
    for volume, disk in site.qubesd.qubes[new].volumes.items():
        before = site.image(f"{old}/{volume}")
        disk.vid = disk.vid.replace(f"/{old}/", f"/{new}/")
        if before.exists():
            site.place(new, volume)
            os.rename(before, site.image(f"{new}/{volume}"))


def delete(site: QubesSite, name: str) -> None:
    del site.qubesd.qubes[name]
    site.image(f"{name}/private").unlink()


def copy_and_remove(site: QubesSite, old: str, new: str) -> None:
    """What Qube Manager does to rename one."""
    site.qubesd.add(new, "AppVM", "vm-pool", SIZE)
    site.place(new, "private")
    os.rename(site.image(f"{old}/private"), site.image(f"{new}/private"))
    del site.qubesd.qubes[old]


def told(site: QubesSite) -> dict[str, int]:
    """Volumes of the archive that hold disks, as dom0 tells them, and how many sessions each
    has.
    """
    with site.open() as archive:
        known = {one.volume_id.hex(): (one.qube, one.volume) for one in site.listed(archive)}
        found = stored_volumes(archive, None, known)
    return {one.name: len(one.sessions) for one in found if one.volume != "settings"}


def of(site: QubesSite, name: str) -> str:
    return identities.load(load(site.config).state_dir).of(name)


def snapshots(site: QubesSite, identity: str) -> list[str]:
    return site.snapshots(f"{identity}/private")


def back_up(site: QubesSite, *names: str) -> dict[str, int]:
    """Bytes stored of each."""
    return {f"{one.qube}/{one.volume}": one.stored for one in site.backup(*names).done}


@pytest.mark.parametrize("by", ["uuid", "command"])
def test_a_qube_that_is_renamed_keeps_all_it_had(qubes: QubesSite, by: str) -> None:
    back_up(qubes, "work/private", "vault/private")
    before = qubes.contents()
    if by == "uuid":
        move(qubes, "work", "play")
    else:
        copy_and_remove(qubes, "work", "play")
        assert agent(qubes, "rename", "work", "play") == 0
    assert agent(qubes, "monitor") == 0
    assert of(qubes, "play") == "work" and len(snapshots(qubes, "work")) == 1
    change(qubes.image("play/private"), random.Random(4), resize=False)
    stored = back_up(qubes, "play/private", "vault/private")
    assert stored["vault/private"] == 0 and 0 < stored["play/private"] < SIZE // 2
    assert told(qubes) == {"play/private": 2, "vault/private": 2}
    qubes.restore(0, "play/private")
    assert qubes.contents("play/private") == before


def test_one_that_is_made_again_is_another(qubes: QubesSite) -> None:
    back_up(qubes, "work/private")
    secret = qubes.contents()
    delete(qubes, "work")
    qubes.add_qube("work")
    fill(qubes.image(), SIZE, 99)
    mine = qubes.contents()
    back_up(qubes, "work/private")
    assert of(qubes, "work") == "_2.work"
    assert told(qubes) == {"work.old/private": 1, "work/private": 1}
    assert agent(qubes, "monitor") == 0
    assert snapshots(qubes, "work") == [] and len(snapshots(qubes, "_2.work")) == 1
    change(qubes.image(), random.Random(4), resize=False)
    _restored(qubes, "work/private", "work/private")
    assert qubes.contents() == mine
    with pytest.raises(RefusedError) as refused:
        _restored(qubes, "work.old/private", "vault/private")
    assert refused.value.refusal == Code.WRONG_VOLUME
    # Its name says where the old one's goes, which dom0's user is shown; as an older session, for
    # the newest of what is gone is not what this one had last.
    with pytest.raises(RefusedError) as refused:
        _restored(qubes, "work.old/private", "work/private")
    assert refused.value.refusal == Code.OLDER and qubes.contents() == mine
    _restored(qubes, "work.old/private", "work/private", older=True)
    assert qubes.contents() == secret


def _restored(site: QubesSite, name: str, to: str, older: bool = False) -> None:
    """Restore the first session of a volume, named as dom0 names it."""
    with site.open() as archive:
        known = {one.volume_id.hex(): (one.qube, one.volume) for one in site.listed(archive)}
        (named,) = [v for v in stored_volumes(archive, None, known) if v.name == name]
        image = archive.image(list(named.sessions), named.sessions[0])
        send = feed(archive, image, name, Progress())
        if older:
            asked = Restoring(*to.split("/"), session_name(image.session.clear.time), older)
            site.agent(archive).restore(asked, send)
        else:
            site.restored(site.agent(archive), image, to, send)


def test_the_administrator_may_say_that_it_is_the_same(qubes: QubesSite) -> None:
    back_up(qubes, "work/private")
    contents = qubes.contents()
    delete(qubes, "work")
    qubes.add_qube("work")
    qubes.image().write_bytes(contents)
    assert agent(qubes, "volumes") == 0 and of(qubes, "work") == "_2.work"
    assert agent(qubes, "rename", "work.old", "work") == 0
    assert of(qubes, "work") == "work"
    assert back_up(qubes, "work/private") == {"work/private": 0}
    assert told(qubes) == {"work/private": 2}


def test_one_that_is_made_of_its_settings_continues(qubes: QubesSite) -> None:
    back_up(qubes, "work/private", "work/settings")
    delete(qubes, "work")
    with qubes.open() as archive:
        (named,) = [
            v for v in stored_volumes(archive, qubes.keys(archive), {}) if v.name == "work/settings"
        ]
        image = archive.image(list(named.sessions), named.sessions[-1])
        send = feed(archive, image, named.name, Progress())
        qubes.restored(qubes.agent(archive), image, "work/settings", send, absent=True)
    qubes.apply("work")
    assert of(qubes, "work") == "work" and identities.load(qubes.state).known["work"].uuid


def test_one_that_is_deleted_lets_its_snapshots_go(
    qubes: QubesSite, capsys: pytest.CaptureFixture[str]
) -> None:
    back_up(qubes, "work/private", "vault/private")
    delete(qubes, "work")
    capsys.readouterr()
    assert agent(qubes, "monitor") == 0
    assert "work/private is not backed up any more" in capsys.readouterr().err
    assert snapshots(qubes, "work") == [] and len(snapshots(qubes, "vault")) == 1


def test_one_that_is_deleted_and_made_again_in_another_pool(qubes: QubesSite) -> None:
    """Of the same UUID, too, when it only moved: the pool that it left is left."""
    back_up(qubes, "work/private", "vault/private")
    other = qubes.pool.with_name("other")
    (other / "appvms/work").mkdir(parents=True)
    qubes.qubesd.pools["other"] = {"driver": "file-reflink", "dir_path": str(other)}
    os.rename(qubes.image(), other / "appvms/work/private.img")
    qubes.qubesd.qubes["work"].volumes["private"].pool = "other"
    assert back_up(qubes, "work/private") == {"work/private": 0}
    assert len(snapshots(qubes, "work")) == 1
    assert agent(qubes, "monitor") == 0
    assert snapshots(qubes, "work") == []
    assert len(list((other / ".sparsebak/work/private").iterdir())) == 1
    delete_in(qubes, other)
    assert agent(qubes, "monitor") == 0
    assert list((other / ".sparsebak/work/private").iterdir()) == []


def delete_in(site: QubesSite, pool: Path) -> None:
    del site.qubesd.qubes["work"]
    (pool / "appvms/work/private.img").unlink()


def test_settings_of_one_that_is_gone_are_not_those_of_another(qubes: QubesSite) -> None:
    """They were saved within the hour, and a backup begins before they are saved again."""
    qubes.take_down()
    delete(qubes, "work")
    qubes.add_qube("work")
    move(qubes, "vault", "safe")
    qubes.add_qube("vault")
    qubes.write_down()
    found = {volume.name for volume in open_catalog(load(qubes.config)).volumes()}
    assert {"work/private", "vault/private", "safe/private", "fedora/settings"} <= found
    assert found.isdisjoint({"work/settings", "vault/settings"})
    qubes.take_down()
    found = {volume.name for volume in open_catalog(load(qubes.config)).volumes()}
    assert {"work/settings", "vault/settings", "safe/settings"} <= found


def test_a_list_of_before_the_rename_gives_nobody_anothers_state(qubes: QubesSite) -> None:
    """A crash between the two files that a rename writes."""
    back_up(qubes, "work/private")
    copy_and_remove(qubes, "work", "play")
    assert agent(qubes, "volumes") == 0
    listed = (qubes.state / "catalog.json").read_bytes()
    assert agent(qubes, "rename", "work", "play") == 0
    kept = (qubes.state / "catalog.json").read_bytes()
    (qubes.state / "catalog.json").write_bytes(listed)
    with qubes.open() as archive:
        before = {one.name: one.volume_id for one in qubes.agent(archive).list()}
        (qubes.state / "catalog.json").write_bytes(kept)
        after = {one.name: one.volume_id for one in qubes.agent(archive).list()}
    assert before["play/private"] == after["play/private"]
