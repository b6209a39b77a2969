# SPDX-License-Identifier: GPL-2.0-or-later
"""Both machines, set up and running, for all the tests here."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import cannot, elsewhere, folder_in_memory, mounted
from tests.system.world import BACKUP_VM, World, built

MISSING = {"systemd-nspawn": "systemd-container", "debootstrap": "debootstrap"}
POOL = 512 << 20


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """Where the machines' changes are."""
    if os.geteuid() != 0:
        cannot("machines with systemd need root")
    for program, package in MISSING.items():
        if shutil.which(program) is None:
            cannot(f"{program} is not installed (package {package})")
    if subprocess.run(["systemd-detect-virt", "--chroot"], check=False).returncode == 0:
        elsewhere("machines with systemd cannot be booted in a chroot")
    for folder in folder_in_memory("system"):
        yield folder
        for line in Path("/proc/mounts").read_text().splitlines():
            if line.split()[1].startswith(f"{folder}/"):
                subprocess.run(["umount", line.split()[1]], check=True)


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("pool")
    yield from mounted(folder / "fs.img", folder / "fs", POOL, ["mkfs.btrfs", "-q"])


@pytest.fixture(scope="session")
def world(memory: Path, pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """See World; everything is installed and set up, and one backup made."""
    made = World(pool, memory / "world", built(tmp_path_factory.mktemp("packages")))
    try:
        made.dom0.boot()
        made.power("Start")
        made.set_up()
        yield made
    finally:
        made.close()


@pytest.fixture(autouse=True)
def as_usual(world: World) -> Iterator[None]:
    """The backup VM runs, its disk is mounted, dom0's user agrees, nothing has failed."""
    if world.qubes[BACKUP_VM].state == "Halted":
        world.power("Start")
    world.vm.run("sh", "-c", "mountpoint -q /mnt || mount /mnt")
    world.answer(True)
    for machine in (world.dom0, world.vm):
        machine.run("systemctl", "reset-failed")
    yield
