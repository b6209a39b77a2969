# SPDX-License-Identifier: GPL-2.0-or-later
"""A gateway that dies under a backup, a store behind it that is gone, buckets that keep versions
and forbid removal: on a real Ceph.
"""

import itertools
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backup_vm.archive.storage.remote import RemoteStorage
from tests.ceph.cluster import Cluster
from tests.kit import GRAIN, Site, change

SPARSEBAK = Path(sys.executable).with_name("sparsebak")
_numbers = itertools.count()


@pytest.fixture
def bucket(request: pytest.FixtureRequest, ceph: Cluster) -> str:
    """A bucket of the test's own, with object lock where it is asked for."""
    name = f"bucket-{next(_numbers)}"
    ceph.client().create_bucket(
        Bucket=name, ObjectLockEnabledForBucket=getattr(request, "param", False)
    )
    return name


@pytest.fixture
def site(ceph: Cluster, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    for name, value in ceph.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    site = Site(tmp_path / "site")
    site.archive = f"s3://{bucket}/archive"  # type: ignore[assignment]
    site.add_archive("ceph", site.archive)
    return site


def command(site: Site, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [SPARSEBAK, "--archive", str(site.archive), "--agent", f"local:{site.config}", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def packs(ceph: Cluster, site: Site) -> int:
    bucket = str(site.archive).split("/")[2]
    listed = ceph.client().list_objects_v2(Bucket=bucket, Prefix="archive/packs/")
    return int(listed["KeyCount"])


def begun(ceph: Cluster, site: Site) -> "subprocess.Popen[str]":
    """A backup that has stored a pack, and has more to store."""
    site.image().write_bytes(random.Random(1).randbytes(96 << 20))
    process = command(site, "backup")
    while not packs(ceph, site):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


def exact(site: Site) -> None:
    assert list(site.images().values())[-1] == site.contents() and site.scrubbed() == []


def test_a_gateway_that_comes_back_within_a_minute(ceph: Cluster, site: Site) -> None:
    process = begun(ceph, site)
    ceph.kill("rgw")
    time.sleep(5)
    ceph.start_gateway()
    said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    exact(site)


def test_a_gateway_that_stays_away(ceph: Cluster, site: Site) -> None:
    process = begun(ceph, site)
    ceph.kill("rgw")
    started = time.monotonic()
    _, error = process.communicate(timeout=120)
    assert process.returncode not in (0, None) and time.monotonic() - started < 90
    ceph.start_gateway()
    assert error.count("\n") == 1 and "cannot be reached: Connection refused" in error, error
    before = packs(ceph, site)
    again = command(site, "backup", "--json")
    assert again.wait(timeout=120) == 0, again.communicate()
    assert packs(ceph, site) > before > 0  # and what was there is used
    exact(site)


def test_a_store_that_is_gone_behind_its_gateway(ceph: Cluster, site: Site) -> None:
    site.image().write_bytes(random.Random(1).randbytes(4 * GRAIN))
    assert command(site, "backup").wait(timeout=60) == 0
    ceph.kill("osd")
    try:
        started = time.monotonic()
        process = command(site, "backup")
        _, error = process.communicate(timeout=300)
        assert process.returncode not in (0, None) and time.monotonic() - started < 150
        assert error.count("\n") == 1 and "does not answer" in error, error
    finally:
        ceph.start_osd()
    change(site.image(), random.Random(2))
    assert command(site, "backup").wait(timeout=120) == 0
    exact(site)


@pytest.mark.parametrize("bucket", [False, True], indirect=True, ids=["versions", "lock"])
def test_a_bucket_that_keeps_what_is_removed(
    ceph: Cluster, site: Site, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions are the store's business: sessions are removed as everywhere. With object lock no
    key of ours can remove what was stored.
    """
    monkeypatch.setattr(RemoteStorage, "pack_size", 4 * GRAIN)
    client, rng, contents = ceph.client(), random.Random(3), []
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    site.image().write_bytes(random.Random(1).randbytes(30 * GRAIN))
    for _ in range(3):
        site.backup()
        contents.append(site.contents())
        change(site.image(), rng)
    assert list(site.images().values()) == contents
    stored = packs(ceph, site)
    pruned = command(site, "prune", "--keep-last", "1", "--min-age", "0d")
    assert pruned.wait(timeout=60) == 0, pruned.communicate()
    assert list(site.images().values()) == contents[-1:] and site.scrubbed() == []
    assert packs(ceph, site) < stored
    versions = client.list_object_versions(Bucket=bucket, Prefix="archive/packs/")
    assert len(versions["Versions"]) >= stored and versions["DeleteMarkers"]
