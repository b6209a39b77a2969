# SPDX-License-Identifier: GPL-2.0-or-later
"""Walking snapshots over many volumes: few commands, one metadata snapshot a pool, nothing left
behind.
"""

import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dom0_agent.admin import cli
from dom0_agent.sources import metadata_snapshot
from dom0_agent.tracking.state import VolumeState
from tests.attack.kit import Attacker
from tests.lvm.kit import MIB, LvmSite, scribble
from wire.status import Code

Make = Callable[..., LvmSite]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The programs started, as they are started."""
    seen: list[str] = []
    original = subprocess.Popen

    def counting(command: list[str], *rest: object, **named: object) -> object:
        seen.append(
            " ".join(
                word
                for word in (command[0], *command[-1:])
                if "reserve" in word or word == command[0]
            )
        )
        return original(command, *rest, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", counting)
    return seen


def two_pools(lvm_site: Make) -> LvmSite:
    """A site with volumes in two pools."""
    site = lvm_site("work/private", "vault/private")
    site.group.pool("pool-512k")
    site.group.volume("pool-512k", "vm-untrusted-private", site.size)
    with open(site.config, "a") as config:
        config.write(
            '[[pool]]\nname = "q"\ndriver = "lvm_thin"\nvolume_group ='
            f' "{site.group.name}"\nthin_pool = "pool-512k"\n'
        )
        config.write(
            '[[volume]]\nqube = "untrusted"\nvolume = "private"\npool = "q"\nvid ='
            ' "vm-untrusted-private"\n'
        )
    site.volumes = (*site.volumes, "untrusted/private")
    return site


def test_two_pools_in_one_go(
    lvm_site: Make, commands: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    site, rng = two_pools(lvm_site), random.Random(2)
    for name in site.volumes:
        scribble(site.image(name), rng)
    site.backup()
    for name in site.volumes:
        scribble(site.image(name), rng, 1)
    commands.clear()
    outcomes = site.monitor()
    assert [outcome.name for outcome in outcomes] == list(site.volumes) and all(
        outcome.changed for outcome in outcomes
    )
    assert (
        commands.count("lvs") == 2
        and commands.count("lvcreate") == 3
        and commands.count("lvremove") == 2
    )
    assert (
        commands.count("dmsetup reserve_metadata_snap") == 4 and commands.count("thin_delta") == 6
    )
    for changed, made, open_first in ((False, 0, False), (False, 1, True), (True, 3, False)):
        commands.clear()
        for name in site.volumes if changed else ():
            scribble(site.image(name), rng, 1)
        before = {
            name: VolumeState(site.state, *name.split("/")).load().base for name in site.volumes
        }
        with open(site.image() if open_first else os.devnull, "rb"):
            outcomes = site.monitor()
        after = {
            name: VolumeState(site.state, *name.split("/")).load().base for name in site.volumes
        }
        assert [bool(outcome.changed) for outcome in outcomes] == [changed] * 3
        assert (
            commands.count("lvcreate") == made
            and sum(before[name] != after[name] for name in before) == made
        )
    busy = VolumeState(site.state, "vault", "private")
    with busy.locked():
        assert cli.main(["--config", str(site.config), "monitor", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["volumes"]
    assert [volume["busy"] for volume in printed] == [False, True, False]
    assert cli.main(["--config", str(site.config), "status", "--json"]) == 0
    shown = {volume["qube"]: volume for volume in json.loads(capsys.readouterr().out)["volumes"]}
    assert all(volume["snapshots"] == 1 and volume["age"] < 600 for volume in shown.values())
    scribble(site.image(), rng, 6)
    assert cli.main(["--config", str(site.config), "status"]) == 0
    assert "work/private: 12.0 MiB, snapshot" in capsys.readouterr().out
    site.backup("vault/private", "untrusted/private")
    for name in ("vault/private", "untrusted/private"):
        assert list(site.images(name).values())[-1] == site.contents(name)


def test_a_metadata_snapshot_left_over_is_released_and_anothers_is_not(
    lvm_site: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = lvm_site()
    monkeypatch.setattr(metadata_snapshot, "PATIENCE", 0.3)
    monkeypatch.setattr(metadata_snapshot, "_POLL", 0.1)
    scribble(site.image(), random.Random(1))
    site.backup()
    mark = site.state / "pools" / f"{site.group.name}+vm-pool"
    site.group.message("vm-pool", "reserve_metadata_snap")
    held = site.group.status("vm-pool")[6]
    assert cli.main(["--config", str(site.config), "monitor"]) == 0  # busy: left for the next time
    assert "1 busy" in capsys.readouterr().out and site.group.status("vm-pool")[6] == held
    assert len(site.snapshots()) == 1
    for left in (held, "unsure"):  # what a killed agent leaves
        if not site.group.held("vm-pool"):
            site.group.message("vm-pool", "reserve_metadata_snap")
        mark.write_text(site.group.status("vm-pool")[6] if left != "unsure" else left)
        site.monitor()
        assert not site.group.held("vm-pool") and not mark.read_text().strip()
    site.backup()
    assert list(site.images().values())[-1] == site.contents()


def test_a_pool_nearly_full_is_left_alone(
    group_with_small_pool: Callable[[], LvmSite], capsys: pytest.CaptureFixture[str]
) -> None:
    from backup_vm.agent.call import RefusedError

    site = group_with_small_pool()
    scribble(site.image(), random.Random(1))
    site.backup()
    filler = site.group.volume("small", "vm-filler", 40 * MIB)
    with open(filler, "r+b") as file:
        used, total = (int(blocks) << 16 for blocks in site.group.status("small")[5].split("/"))
        file.write(random.Random(1).randbytes(total * 96 // 100 - used))
    with pytest.raises(AssertionError, match="storage is full"):
        site.backup()
    site.monitor()  # continues: it only gives space back
    before = site.contents()
    with pytest.raises(RefusedError, match="storage is full"):
        site.restore()
    assert site.contents() == before
    assert len(site.snapshots()) == 1
    site.config.write_text(
        site.config.read_text().replace(
            "thin_pool =", "metadata_limit = 1\ndata_limit = 99\nthin_pool ="
        )
    )
    assert cli.main(["--config", str(site.config), "monitor"]) == 0, (
        "nothing changed, so nothing is needed"
    )
    with open(site.image(), "r+b") as volume:
        volume.write(b"changed")
    assert cli.main(["--config", str(site.config), "monitor"]) == 1
    assert "extend it with: lvextend --poolmetadatasize" in capsys.readouterr().err
    assert len(site.snapshots()) == 1


def test_a_flood_of_snapshots_cannot_fill_the_pool(
    group_with_small_pool: Callable[[], LvmSite], capsys: pytest.CaptureFixture[str]
) -> None:
    """A backup VM begins sessions and never ends them, while the qube writes its whole volume
    again and again.
    """
    site = group_with_small_pool()
    site.config.write_text(
        site.config.read_text().replace("thin_pool =", "data_limit = 70\nthin_pool =")
    )
    attacker, rng, refusals, most = Attacker(site), random.Random(3), 0, 0.0

    def rewrite() -> None:
        with open(site.image(), "r+b") as file:
            file.write(rng.randbytes(8 * MIB))
            os.fsync(file.fileno())

    rewrite()
    site.backup()
    for _ in range(4):
        for _ in range(3):
            status = attacker.call("Snapshot", attacker.request())
            assert status.code in (Code.OK, Code.NO_SPACE)
            refusals += status.code == Code.NO_SPACE
            assert len(site.snapshots()) <= 2
        rewrite()
        used, total = (int(blocks) for blocks in site.group.status("small")[5].split("/"))
        most = max(most, used / total)
        site.monitor()
    assert most < 1, "the pool was never full"
    assert "pending session dropped, because" in capsys.readouterr().err
    rewrite()
    site.monitor()
    assert len(site.snapshots()) == 1
    site.backup()
    assert list(site.images().values())[-1] == site.contents()


@pytest.fixture
def group_with_small_pool(lvm_site: Make, tmp_path: Path) -> Callable[[], LvmSite]:
    """A site in a pool of 32 MiB."""

    def make() -> LvmSite:
        first = lvm_site("other/private")
        first.group.pool("small", size=32 * MIB, block=64)
        return lvm_site(pool="small", size=12 * MIB)

    return make
