# SPDX-License-Identifier: GPL-2.0-or-later
"""Servers for the tests of remote archives, one of each kind for all tests of a process."""

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backup_vm.archive.storage import objects
from tests.kit import Site
from tests.remote.kit import Network, Server, s3_server, ssh_server
from tests.remote.lock_kit import MakeLocked, client_of, locked_site

Make = Callable[..., Site]
_numbers = itertools.count()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """moto's, which is quick; a real distributed store where SPARSEBAK_S3=ceph."""
    folder = tmp_path_factory.mktemp("s3")
    if os.environ.get("SPARSEBAK_S3") != "ceph":
        with s3_server(folder) as server:
            yield server
        return
    from tests.ceph.cluster import cluster

    with cluster(folder) as ceph:
        ceph.client().create_bucket(Bucket="bucket")
        yield Server("s3", ceph.port, folder)


@pytest.fixture(scope="session")
def sftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with ssh_server(tmp_path_factory.mktemp("ssh")) as server:
        yield server


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "home/.ssh").mkdir(parents=True)
    for path in (folder / "host", folder / "home/.ssh/id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return folder


@pytest.fixture(params=["s3", "sftp"])
def server(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Server:
    """A server of each kind, and the environment that leads to it; a cache of the test's own."""
    found: Server = request.getfixturevalue(request.param)
    for name, value in found.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(objects, "DELAYS", (0.05, 0.1, 0.2, 0.2, 0.2))
    return found


@pytest.fixture
def client(s3: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """What whoever has the key of the S3 store can do, by boto3."""
    return client_of(s3, monkeypatch, tmp_path / "cache")


@pytest.fixture
def locked(client: Any, tmp_path: Path) -> MakeLocked:
    """Makes sites, see locked_site."""
    return lambda retention: locked_site(client, tmp_path, retention)


@pytest.fixture
def network(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    """A network that may fail, on the way to the server."""
    network = Network(server)
    for name, value in server.environment(network.port).items():
        monkeypatch.setenv(name, value)
    yield network
    network.close()


@pytest.fixture
def make_site(remote_site: Make) -> Make:
    """The same by a name that says it makes one."""
    return remote_site


@pytest.fixture
def remote_site(server: Server, tmp_path: Path) -> Callable[..., Site]:
    """Makes sites whose archives are on the server."""

    def make(port: int = 0, **named: object) -> Site:
        site = Site(tmp_path / f"site{next(_numbers)}", **named)  # type: ignore[arg-type]
        site.archive = server.url(f"archive-{next(_numbers)}", port)  # type: ignore[assignment]
        site.add_archive("remote", site.archive)
        return site

    return make
