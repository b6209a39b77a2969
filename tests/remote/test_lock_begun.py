# SPDX-License-Identifier: GPL-2.0-or-later
"""How an archive comes to have a retention: where it is made, in a copy, later; and where it
cannot.
"""

import os
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from backup_vm.archive.parameters import load
from backup_vm.archive.storage import open_storage
from tests.commands import Commands
from tests.kit import GRAIN, Site
from tests.remote.lock_kit import DAYS, MakeLocked, all_locked, until, versions


def test_places_that_can_lock_nothing_are_refused_s3(
    client: Any, site: Site, commands_for: Callable[[Site], Commands]
) -> None:
    commands = commands_for(site)
    for place, what in (
        (f"s3://bucket/no-lock-{os.getpid()}", "its bucket has no object lock"),
        (str(site.root / "other"), "only an S3-compatible store"),
        ("gs://bucket/x", "no credentials"),
    ):
        assert what in commands.fails(1, "init", place, "--label", "tests", "--retention", "30d")
        if place.startswith("s3"):
            listed = client.list_objects_v2(Bucket="bucket", Prefix=place.split("/")[3])
            assert listed["KeyCount"] == 0
    for text in ("3h", "2y", "x"):
        with pytest.raises(SystemExit):
            commands.run("init", "s3://bucket/y", "--label", "tests", "--retention", text)


def test_a_copy_has_a_retention_of_its_own_s3(
    client: Any, locked: MakeLocked, site: Site, commands_for: Callable[[Site], Commands]
) -> None:
    place = str(locked(DAYS).archive) + "-copy"
    site.image().write_bytes(random.Random(1).randbytes(9 * GRAIN))
    site.backup()
    commands = commands_for(site)
    commands.run("copy", place, "--retention", "30d")
    commands.run("copy", place)
    assert "is not changed by this" in commands.fails(1, "copy", place, "--retention", "60d")
    assert load(open_storage(place)).retention == DAYS
    assert load(open_storage(site.archive)).retention == 0
    assert list(site.images(folder=place).values()) == [site.contents()]  # type: ignore[arg-type]
    name = place.removeprefix("s3://").partition("/")[0]
    copied = client.list_object_versions(Bucket=name, Prefix="an archive-copy/packs")["Versions"]
    assert copied
    for one in copied:
        told = client.head_object(Bucket=name, Key=one["Key"], VersionId=one["VersionId"])
        assert told["ObjectLockRetainUntilDate"] > datetime.now(UTC)


def test_an_archive_is_given_a_retention_later_s3(
    client: Any, locked: MakeLocked, commands_for: Callable[[Site], Commands]
) -> None:
    site = locked(0)
    site.backup()
    commands, place = commands_for(site), str(site.archive)
    assert not any(until(client, site, one) for one in versions(client, site))
    commands.run("init", place, "--label", "locked", "--repair", "--retention", "30d")
    commands.run("init", place, "--label", "locked", "--repair", "--retention", "20d")
    again = commands.json("init", place, "--label", "locked", "--repair")
    assert again["retention"] == DAYS
    assert load(open_storage(place)).retention == DAYS
    assert commands.json("status")["lock"]["late"]
    assert "Less than half is left" in commands.run("status")[0]
    note = "note locked for 30 days"
    assert note in commands.run("doctor", expect=None)[0]
    commands.run("backup")
    all_locked(client, site, DAYS - 120)
    assert not commands.json("status")["lock"]["late"]
    assert "ok   locked for 30 days" in commands.run("doctor", expect=None)[0]
