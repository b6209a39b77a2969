# SPDX-License-Identifier: GPL-2.0-or-later
"""Whoever has the key for an object store, with all its rights, against an archive there: what was
locked, or kept as versions, can be had back.
"""

import datetime
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Commands
from tests.kit import GRAIN, Site, change
from tests.remote.kit import Server
from tests.remote.lock_kit import (
    DAYS,
    bucket_of,
    client_of,
    delete_all,
    every_version,
    locked_site,
    overwrite_all,
    versions,
)


@pytest.fixture
def client(s3: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """What the thief has."""
    return client_of(s3, monkeypatch, tmp_path / "cache")


@pytest.fixture
def site(client: Any, tmp_path: Path) -> Site:
    """Two sessions in a bucket with object lock."""
    made = locked_site(client, tmp_path, DAYS)
    made.backup()
    change(made.image(), random.Random(2), resize=False)
    made.backup()
    return made


@pytest.fixture
def commands(site: Site, commands_for: Callable[[Site], Commands]) -> Commands:
    return commands_for(site)


def moment(client: Any, site: Site) -> str:
    """The last of what was stored, by the store's clock; nothing that comes is of the same second,
    for some stores list whole ones.
    """
    last: datetime.datetime = max(one["LastModified"] for one in every_version(client, site))
    if last.microsecond:  # what is listed may be of the moment before it was locked
        last = last.replace(microsecond=0) + datetime.timedelta(seconds=1)
    time.sleep(max(0.0, last.timestamp() + 1.05 - time.time()))
    return last.isoformat()


def had_back(commands: Commands, then: str, images: dict[str, bytes]) -> None:
    """All is copied to a new place from what was there, which is an archive like any other."""
    site = commands.site
    place = site.root / "rescued"
    assert len(commands.keyed("--as-of", then, "list")["volumes"][0]["sessions"]) == len(images)
    commands.keyed("--as-of", then, "verify")
    commands.run("--as-of", then, "copy", str(place))
    assert site.images(folder=place) == images
    change(site.image(), random.Random(3), resize=False)
    commands.run("--archive", str(place), "backup")
    assert list(site.images(folder=place).values())[-1] == site.contents()


def test_s3_everything_deleted(client: Any, site: Site, commands: Commands) -> None:
    images, then, stored = site.images(), moment(client, site), versions(client, site)
    assert delete_all(client, site) == len(stored)
    commands.fails(10, "list")
    had_back(commands, then, images)


def test_s3_everything_overwritten(client: Any, site: Site, commands: Commands) -> None:
    images, then = site.images(), moment(client, site)
    overwrite_all(client, site)
    assert commands.outcome("list")[0] != 0
    had_back(commands, then, images)


def test_s3_in_a_bucket_that_only_keeps_versions(
    client: Any, tmp_path: Path, commands_for: Callable[[Site], Commands]
) -> None:
    """With a key that may not remove versions nothing needs a lock."""
    site = locked_site(client, tmp_path, 0)
    site.backup()
    images, then = site.images(), moment(client, site)
    overwrite_all(client, site)
    for one in every_version(client, site):
        client.delete_object(Bucket=bucket_of(site), Key=one["Key"])
    had_back(commands_for(site), then, images)


def test_s3_as_of_can_only_be_read(client: Any, site: Site, commands: Commands) -> None:
    then = moment(client, site)
    before = len(every_version(client, site))
    for words in (["backup"], ["prune", "--keep-last", "1"], ["tag", "work", "--add", "x"]):
        assert "can only be read" in commands.fails(1, "--as-of", then, *words)
    commands.keyed("--as-of", then, "status")
    commands.run("--as-of", then, "scrub")
    assert len(every_version(client, site)) == before
    assert "no archive" in commands.fails(10, "--as-of", "2020-01-01", "list")
    with pytest.raises(SystemExit):
        commands.run("--as-of", "yesterday", "list")
    place = str(site.root / "archive")
    assert "keeps no versions" in commands.fails(2, "--archive", place, "--as-of", then, "list")


def test_s3_each_moment_is_one_of_its_own(client: Any, site: Site, commands: Commands) -> None:
    then, images = moment(client, site), site.images()
    site.image().write_bytes(random.Random(9).randbytes(9 * GRAIN))
    site.backup()
    commands.run("prune", "--keep-last", "1", "--max-removed", "100%")
    assert list(site.images()) != list(images)
    place = f"{site.archive}?as-of={then}"
    assert site.images(folder=place) == images  # type: ignore[arg-type]
