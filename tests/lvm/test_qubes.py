# SPDX-License-Identifier: GPL-2.0-or-later
"""A Qubes machine whose volumes are in a thin pool: running and halted qubes, restore through the
Admin API.
"""

import importlib
import importlib.util
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tests.qubes
from backup_vm.agent.call import RefusedError
from dom0_agent.admin.catalog import write_down
from dom0_agent.config import load
from dom0_agent.sources import lvm
from tests.lvm.kit import MIB, Group, LvmSite, scribble
from tests.qubes.qubesd import Qubesd

SIZE = 8 * MIB
IMPORT = """#!/bin/sh
# As qubesd does: a fresh volume takes the contents, and only a whole one takes the old one's place.
exec 2>/dev/null
read -r size
vm=vm-$QREXEC_REQUESTED_TARGET-$1
lvcreate -q --virtualsize ${size}b --thinpool {pool} --name $vm-import {group} >/dev/null
cat >/tmp/$vm
got=$(wc -c </tmp/$vm)
dd bs=1M if=/tmp/$vm of=/dev/{group}/$vm-import conv=notrunc
rm /tmp/$vm
if [ "$got" -eq "$size" ]; then
    lvrename -q {group} $vm $vm-1700000000-back >/dev/null
    lvrename -q {group} $vm-import $vm >/dev/null
    printf '0\\0'
else
    lvremove -q -f {group}/$vm-import >/dev/null
    printf '2\\0QubesException\\0\\0not enough data\\0'
fi
"""


class QubesOnLvm(LvmSite):
    """See Site; qubesd names the volumes."""

    def __init__(self, root: Path, group: Group, qubesd: Qubesd) -> None:
        self.qubesd = qubesd
        super().__init__(root, group, "vm-pool", ("work/private", "vault/private"), SIZE)

    def _make(self) -> None:
        super()._make()
        driver = {
            "driver": "lvm_thin",
            "volume_group": self.group.name,
            "thin_pool": self.pool_name,
        }
        self.qubesd.pools["vm-pool"] = driver
        for name in ("work", "vault"):
            disk = self.qubesd.add(name, "AppVM", "vm-pool", SIZE).volumes["private"]
            disk.vid = f"{self.group.name}/vm-{name}-private"
        script = self.qubesd.services / "admin.vm.volume.ImportWithSize"
        script.write_text(
            IMPORT.replace("{pool}", self.pool_name).replace("{group}", self.group.name)
        )
        self.config.write_text(
            'state_dir = "dom0"\ncatalog = "qubes"\n[qubes]\ndom0_config = []\nsettings = false\n'
        )

    def list_volumes(self) -> None:
        """What dom0's timer does before anything else."""
        write_down(load(self.config))

    def start(self, name: str) -> Path:
        """The live device of a qube that now runs."""
        origin = f"{self.group.name}/vm-{name}-private"
        self.group.lvm(
            "lvcreate",
            "--snapshot",
            "--setactivationskip",
            "n",
            "--name",
            f"vm-{name}-private-snap",
            origin,
        )
        self.qubesd.qubes[name].state = "Running"
        return self.group.device(f"vm-{name}-private-snap")

    def stop(self, name: str) -> None:
        """What ran becomes what is kept."""
        kept = f"vm-{name}-private"
        self.group.lvm("lvrename", self.group.name, kept, f"{kept}-1600000000-back")
        self.group.lvm("lvrename", self.group.name, f"{kept}-snap", kept)
        self.qubesd.qubes[name].state = "Halted"


@pytest.fixture
def machine(group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[QubesOnLvm]:
    if importlib.util.find_spec("qubesadmin") is None:
        monkeypatch.syspath_prepend(str(Path(tests.qubes.__file__).parent / "standin"))
    server = Qubesd(tmp_path / "qubesd")
    config = importlib.import_module("qubesadmin.config")
    monkeypatch.setattr(config, "QUBESD_SOCKET", str(server.socket))
    monkeypatch.setattr(config, "QREXEC_SERVICES_DIR", str(server.services))
    group.pool("vm-pool")
    site = QubesOnLvm(tmp_path / "site", group, server)
    site.list_volumes()
    yield site
    server.close()
    group.empty()
    for name in [name for name in sys.modules if name.split(".")[0] == "qubesadmin"]:
        del sys.modules[name]


def test_running_halted_and_back(machine: QubesOnLvm) -> None:
    rng = random.Random(1)
    for name in machine.volumes:
        scribble(machine.image(name), rng)
    machine.backup()
    live = machine.start("work")
    scribble(live, rng)
    machine.monitor()
    machine.backup()
    while_running = live.read_bytes()
    assert list(machine.images().values())[-1] == while_running
    with pytest.raises(RefusedError, match="running"):
        machine.restore()
    scribble(live, rng)
    machine.stop("work")  # another device, with the same blocks
    report = machine.backup("work/private")
    assert (
        list(machine.images().values())[-1] == machine.contents() and report.done[0].changed < SIZE
    )
    machine.restore(1)
    assert machine.contents() == while_running
    assert f"{machine.lv()}-1700000000-back" in machine.group.volumes()
    machine.backup()
    assert list(machine.images().values())[-1] == while_running
    ours = [name for name in machine.group.volumes() if lvm.TAG in name]
    assert len(ours) == 2 and not [
        name for name in ours if name.endswith(("-snap", "-back", "-import"))
    ]
