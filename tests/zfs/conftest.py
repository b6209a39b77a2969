# SPDX-License-Identifier: GPL-2.0-or-later
"""A real ZFS pool on a file; a machine without ZFS boots a VM for it."""

import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.conftest import cannot
from tests.zfs.kit import Container, Links, ZfsSite, zfs

_NUMBERS = count()


@pytest.fixture(scope="session")
def tank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A pool of 2 GiB, sparse."""
    if os.geteuid() != 0:
        cannot("ZFS needs root")
    if not Path("/dev/zfs").exists():
        cannot("this kernel has no ZFS; 'make test-zfs' boots one that has")
    disk = tmp_path_factory.mktemp("zfs") / "disk"
    with open(disk, "wb") as file:
        file.truncate(2 << 30)
    name = f"sb-{os.environ.get('PYTEST_XDIST_WORKER', 'gw0')}"
    zfs("zpool", "create", "-o", "cachefile=none", "-O", "mountpoint=none", name, str(disk))
    links = None if Path("/run/udev/control").exists() else Links()
    try:
        yield name
    finally:
        if links is not None:
            links.end()
        zfs("zpool", "destroy", name)


@pytest.fixture
def container(tank: str) -> Iterator[Callable[..., Container]]:
    """Makes datasets, with the options given; all of them go when the test ends."""
    made: list[Container] = []

    def make(*options: str) -> Container:
        made.append(Container(f"{tank}/c{next(_NUMBERS)}", *options))
        return made[-1]

    yield make
    for one in made:
        zfs("destroy", "-R", one.name)


@pytest.fixture
def zfs_site(container: Callable[..., Container], tmp_path: Path) -> Callable[..., ZfsSite]:
    """Makes sites with a volume in a dataset of its own."""

    def make(*options: str, size: int = 12 << 20) -> ZfsSite:
        return ZfsSite(tmp_path / "site", container(*options), size)

    return make
