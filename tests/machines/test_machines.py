# SPDX-License-Identifier: GPL-2.0-or-later
"""Three machines on one archive: random steps against a model; see ``world``."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import folder_in_memory
from tests.machines.world import LONG, STEPS, made, quickly
from tests.remote.kit import Server, s3_server, ssh_server

APART = 12
"""Steps of which one has machines apart: it takes as long as ten of the others."""


@contextmanager
def folder_server(folder: Path) -> Iterator[Server]:
    """A folder that all machines have, as a disk in turns or a mount of a server's."""
    (folder / "store").mkdir()
    yield Server("local", 0, folder / "store")


@contextmanager
def ceph_server(folder: Path) -> Iterator[Server]:
    """A real distributed store."""
    from tests.ceph.cluster import cluster

    with cluster(folder) as ceph:
        ceph.client().create_bucket(Bucket="bucket")
        yield Server("s3", ceph.port, folder)


STORES = {"local": folder_server, "sftp": ssh_server, "s3": s3_server, "ceph": ceph_server}
CHOSEN = os.environ.get("SPARSEBAK_STORES", "local sftp s3" if LONG else "sftp").split()


@pytest.fixture(params=CHOSEN)
def store_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    with STORES[request.param](tmp_path) as server:
        yield server


def test_three_machines(store_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    quickly(monkeypatch)
    for name, value in store_server.environment().items():
        monkeypatch.setenv(name, value)
    for folder in folder_in_memory("machines"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache-0"))
        world = made(folder, store_server)
        try:
            for world.step in range(1, STEPS + 1):
                begun = time.monotonic()
                world.take_turns("apart" if world.step % APART == APART // 2 else "")
                world.noted(begun, world.last)
                if world.step % 5 == 0:
                    begun = time.monotonic()
                    world.look()
                    world.noted(begun, "look")
                if world.faults:
                    break
            begun = time.monotonic()
            world.end()
            world.noted(begun, "end")
        finally:
            print(world.coverage.table())
            for machine in world.machines:
                if machine.network is not None:
                    machine.network.close()
        assert not world.faults, "\n".join(world.faults)
