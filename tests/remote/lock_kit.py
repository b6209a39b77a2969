# SPDX-License-Identifier: GPL-2.0-or-later
"""Archives in buckets that keep versions, and what whoever has the key for a store does there."""

import itertools
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from backup_vm.archive.storage.remote import RemoteStorage
from tests.kit import GRAIN, Site
from tests.remote.kit import Server

DAYS = 30 * 86400
PATH = "an archive"
LASTING = re.compile(r"(packs|parity)/.+|.+\.session|archive\.toml|notes\.json")
_numbers = itertools.count()
MakeLocked = Callable[[int], Site]
"""Makes a site whose archive has a retention of so many seconds."""


def client_of(server: Server, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Any:
    """boto3's client for a server to which the environment leads, too, with a cache of its own."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("XDG_STATE_HOME", f"{cache}-state")
    monkeypatch.setattr(RemoteStorage, "pack_size", 4 * GRAIN)
    endpoint = server.environment()["AWS_ENDPOINT_URL"]
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")


def locked_site(client: Any, folder: Path, retention: int) -> Site:
    """A site whose archive, in a bucket with object lock, has a retention of so many seconds."""
    name = f"lock-{os.getpid()}-{next(_numbers)}"
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    site = Site(folder / name)
    site.archive = f"s3://{name}/{PATH}"  # type: ignore[assignment]
    site.add_archive("locked", site.archive, retention=retention)
    site.image().write_bytes(random.Random(1).randbytes(20 * GRAIN))
    return site


def bucket_of(site: Site) -> str:
    return str(site.archive).split("/")[2]


def every_version(client: Any, site: Site) -> list[dict[str, Any]]:
    """All versions in a site's bucket."""
    pages = client.get_paginator("list_object_versions").paginate(Bucket=bucket_of(site))
    return [one for page in pages for one in page.get("Versions", [])]


def versions(client: Any, site: Site) -> list[dict[str, Any]]:
    """All but those of leases, which nobody needs to keep."""
    found = every_version(client, site)
    return [one for one in found if LASTING.fullmatch(one["Key"].removeprefix(f"{PATH}/"))]


def until(client: Any, site: Site, version: dict[str, Any]) -> float:
    """Until when a version is locked by its store's word; 0: it is not."""
    told = client.head_object(
        Bucket=bucket_of(site), Key=version["Key"], VersionId=version["VersionId"]
    )
    assert told.get("ObjectLockMode", "COMPLIANCE") == "COMPLIANCE"
    date = told.get("ObjectLockRetainUntilDate")
    return float(date.timestamp()) if date else 0.0


def all_locked(client: Any, site: Site, seconds: float) -> None:
    """Everything that is there now is locked for so long at least."""
    for version in versions(client, site):
        if version["IsLatest"]:
            assert until(client, site, version) >= time.time() + seconds, version["Key"]


def delete_all(client: Any, site: Site) -> int:
    """As somebody would who wants nothing to be left: everything, and every version of it, with all
    that the key may do. Returns how many versions could not be removed.
    """
    name, refused = bucket_of(site), 0
    for one in every_version(client, site):
        client.delete_object(Bucket=name, Key=one["Key"])
    for one in every_version(client, site):
        try:
            client.delete_object(
                Bucket=name,
                Key=one["Key"],
                VersionId=one["VersionId"],
                BypassGovernanceRetention=True,
            )
        except ClientError as error:
            assert error.response["Error"]["Code"] == "AccessDenied"
            refused += 1
    return refused


def overwrite_all(client: Any, site: Site) -> None:
    """Junk of the same length in the place of everything."""
    for one in every_version(client, site):
        client.put_object(
            Bucket=bucket_of(site), Key=one["Key"], Body=random.randbytes(one["Size"])
        )
