# SPDX-License-Identifier: GPL-2.0-or-later
"""A real volume group on a loop device, one for each test process; a machine without device-mapper
boots a VM for it.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import cannot
from tests.lvm.kit import Group, LvmSite

CONFIG = """
activation {{ udev_sync = {udev} udev_rules = {udev} verify_udev_operations = 0 monitoring = 0 }}
devices {{ use_devicesfile = 0 scan = [ "/dev" ] }}
devices {{ filter = [ "a|^{device}$|", "r|.*|" ] scan_lvs = 0 }}
devices {{ md_component_detection = 0 }}
devices {{ multipath_component_detection = 0 fw_raid_component_detection = 0 }}
global {{ locking_dir = "{folder}/lock" use_lvmpolld = 0 }}
backup {{ backup = 0 archive = 0 }}
"""


@pytest.fixture(scope="session")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    """A volume group of a few GiB, sparse, with LVM's configuration set so that nothing else is
    seen.
    """
    if os.geteuid() != 0:
        cannot("LVM needs root")
    targets = subprocess.run(
        ["dmsetup", "targets"], capture_output=True, text=True, check=False
    ).stdout
    if "thin-pool" not in targets:
        cannot("this kernel has no thin pools; 'make test-lvm' boots one that has")
    folder = tmp_path_factory.mktemp("lvm")
    disk = folder / "disk"
    with open(disk, "wb") as file:
        file.truncate(4 << 30)
    done = subprocess.run(
        ["losetup", "--find", "--show", disk], capture_output=True, text=True, check=True
    )
    device, udev = done.stdout.strip(), int(Path("/run/udev/control").exists())
    (folder / "lvm.conf").write_text(CONFIG.format(device=device, folder=folder, udev=udev))
    os.environ["LVM_SYSTEM_DIR"] = str(folder)
    made = Group(f"sb-{os.environ.get('PYTEST_XDIST_WORKER', 'gw0')}")
    made.lvm("vgcreate", made.name, device)
    try:
        yield made
    finally:
        made.lvm("vgremove", "--force", made.name)
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.fixture
def lvm_site(group: Group, tmp_path: Path) -> Iterator[Callable[..., LvmSite]]:
    """Makes sites with volumes in a thin pool; all their volumes go when the test ends."""
    made: list[LvmSite] = []

    def make(
        *volumes: str, pool: str = "vm-pool", size: int = 12 << 20, **named: object
    ) -> LvmSite:
        group.pool(pool)
        site = LvmSite(
            tmp_path / f"site{len(made)}", group, pool, volumes or ("work/private",), size, **named
        )
        made.append(site)
        return site

    yield make
    group.empty()
