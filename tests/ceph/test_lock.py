# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks that a real store keeps, and a key that can only add."""

import datetime
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from backup_vm.archive.storage.bucket import Bucket
from backup_vm.errors import ForbiddenError
from tests.ceph.cluster import KEY, Cluster
from tests.commands import Commands
from tests.kit import Site, change
from tests.remote.kit import Server
from tests.remote.lock_kit import (
    DAYS,
    PATH,
    bucket_of,
    client_of,
    every_version,
    locked_site,
    until,
    versions,
)

POLICY = Path(__file__).parents[2] / "docs/add-only.json"
ADDER = "adder"


@pytest.fixture
def client(ceph: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    server = Server("s3", ceph.port, ceph.folder)
    return client_of(server, monkeypatch, tmp_path / "cache")


@pytest.fixture
def site(client: Any, tmp_path: Path) -> Site:
    return locked_site(client, tmp_path, DAYS)


def test_no_lock_is_made_shorter(client: Any, site: Site) -> None:
    site.backup()
    for one in versions(client, site):
        before = until(client, site, one)
        for mode, days in (("COMPLIANCE", 1), ("GOVERNANCE", 60)):
            date = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
            with pytest.raises(ClientError):
                client.put_object_retention(
                    Bucket=bucket_of(site),
                    Key=one["Key"],
                    VersionId=one["VersionId"],
                    BypassGovernanceRetention=True,
                    Retention={"Mode": mode, "RetainUntilDate": date},
                )
        assert until(client, site, one) == before
    site.backup()


def test_what_was_locked_again_is_there_at_earlier_moments(client: Any, site: Site) -> None:
    """Ceph's times of versions are those at which they were locked last."""
    site.backup()
    images = site.images()
    last = max(one["LastModified"] for one in every_version(client, site))
    then = last.replace(microsecond=0) + datetime.timedelta(seconds=1)
    time.sleep(2)
    site.image().write_bytes(b"later")
    site.backup()
    store = Bucket(str(site.archive))
    for one in versions(client, site):
        if one["IsLatest"]:  # as after half of the retention
            name, again = one["Key"].removeprefix(f"{PATH}/"), time.time() + 2 * DAYS
            store.retain(name, int(again), one["VersionId"])
    for one in versions(client, site):
        client.delete_object(Bucket=bucket_of(site), Key=one["Key"])
    place = f"{site.archive}?as-of={then.isoformat()}"
    assert site.images(folder=place) == images  # type: ignore[arg-type]


def test_a_longer_lock_is_left_as_it_is(client: Any, site: Site) -> None:
    site.backup()
    store = Bucket(str(site.archive))
    one = next(one for one in versions(client, site) if one["Key"].endswith(".pack"))
    name, before = one["Key"].removeprefix(f"{PATH}/"), until(client, site, one)
    assert store.retain(name, int(before) - 86400) == before
    assert store.retain(name, int(before) + 86400, one["VersionId"]) == before + 86400
    with pytest.raises(FileNotFoundError):
        store.retain("packs/no-such-thing", int(before))
    with pytest.raises(ForbiddenError):
        store.remove(name, one["VersionId"])


def let_add(ceph: Cluster, client: Any, bucket: str) -> str:
    """Have a user who may only add to a bucket; returns its policy, as the bucket has it."""
    ceph.add_user(ADDER)
    policy = json.loads(POLICY.read_text().replace("BUCKET", bucket))
    for statement in policy["Statement"]:  # whose it is, where it is put on a bucket
        statement["Principal"] = {"AWS": [f"arn:aws:iam:::user/{ADDER}"]}
    # Ceph's objects are whose key stored them: the bucket's owner reads none without this.
    everything = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    owner = {"AWS": [f"arn:aws:iam:::user/{KEY}"]}
    policy["Statement"].append(
        {"Effect": "Allow", "Principal": owner, "Action": "s3:*", "Resource": everything}
    )
    text = json.dumps(policy)
    client.put_bucket_policy(Bucket=bucket, Policy=text)
    return text


def can_change_no_rules(adder: Any, bucket: str, policy: str) -> None:
    """It may not change what a bucket does with versions, and who may do what there."""
    rule = {
        "ID": "x",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
    }
    for attempt in (
        lambda: adder.put_bucket_versioning(
            Bucket=bucket, VersioningConfiguration={"Status": "Suspended"}
        ),
        lambda: adder.put_bucket_policy(Bucket=bucket, Policy=policy),
        lambda: adder.put_bucket_lifecycle_configuration(
            Bucket=bucket, LifecycleConfiguration={"Rules": [rule]}
        ),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            attempt()


def test_a_key_that_can_only_add(
    ceph: Cluster,
    client: Any,
    site: Site,
    commands_for: Callable[[Site], Commands],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = bucket_of(site)
    policy = let_add(ceph, client, bucket)
    commands, adder = commands_for(site), ceph.client(ADDER)
    with monkeypatch.context() as patched:
        patched.setenv("AWS_ACCESS_KEY_ID", ADDER)
        patched.setenv("AWS_SECRET_ACCESS_KEY", ADDER)
        for turn in range(3):
            commands.run("backup")
            change(site.image(), random.Random(turn), resize=False)
        commands.run("backup")
        assert list(site.images().values())[-1] == site.contents()
        stored = versions(client, site)
        assert all(until(client, site, one) > time.time() + DAYS - 300 for one in stored)
        leases = [one for one in every_version(client, site) if "/locks/" in one["Key"]]
        assert leases  # nobody removes them yet, and nobody waits for them
        commands.fails(1, "prune", "--keep-last", "1", "--max-removed", "100%")
        for one in every_version(client, site):
            for version in ({}, {"VersionId": one["VersionId"]}):
                with pytest.raises(ClientError, match="AccessDenied"):
                    adder.delete_object(Bucket=bucket, Key=one["Key"], **version)
        can_change_no_rules(adder, bucket, policy)
    images = site.images()
    last = max(one["LastModified"] for one in every_version(client, site))
    last = last.replace(microsecond=0) + datetime.timedelta(seconds=1)
    time.sleep(2.1)
    # What it can do is to overwrite. Nothing of what was there goes by that.
    for one in versions(client, site):
        adder.put_object(Bucket=bucket, Key=one["Key"], Body=b"junk")
    place = site.root / "rescued"
    commands.run("--as-of", last.isoformat(), "copy", str(place))
    assert site.images(folder=place) == images


def test_whoever_may_remove_prunes_after_one_that_can_only_add(
    client: Any, site: Site, commands_for: Callable[[Site], Commands]
) -> None:
    for turn in range(3):
        site.backup()
        change(site.image(), random.Random(turn), resize=False)
    last = list(site.images().values())[-1]
    done = commands_for(site).json("prune", "--keep-last", "1", "--max-removed", "100%")
    assert len(done["removed"]) == 2 and done["waiting"]
    assert list(site.images().values()) == [last]
