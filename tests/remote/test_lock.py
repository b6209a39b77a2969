# SPDX-License-Identifier: GPL-2.0-or-later
"""Archives with a retention, in buckets with object lock: what is stored cannot be removed for a
time, what stays is locked again, and what was removed is given back later.
"""

import itertools
import os
import random
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError
from prometheus_client.parser import text_string_to_metric_families

from backup_vm.archive import holding
from backup_vm.archive.parameters import load
from backup_vm.archive.storage import bucket, open_storage
from backup_vm.archive.storage.bucket import Bucket
from backup_vm.archive.storage.vault import Vault
from backup_vm.errors import ForbiddenError, SparsebakError
from tests.commands import Commands
from tests.kit import GRAIN, Site, change
from tests.remote.lock_kit import DAYS, MakeLocked, all_locked, bucket_of, until, versions

SHORT = 3 if os.environ.get("SPARSEBAK_S3") == "ceph" else 1
"""Seconds of a retention that runs out in a test; Ceph takes none that has run out on its way."""


def test_what_is_stored_cannot_be_removed_s3(client: Any, locked: MakeLocked) -> None:
    site = locked(DAYS)
    site.backup()
    change(site.image(), random.Random(2), resize=False)
    site.backup()
    names = {version["Key"].rpartition(".")[2] for version in versions(client, site)}
    assert {"pack", "session", "toml"} <= names
    all_locked(client, site, DAYS - 120)
    for version in versions(client, site):
        with pytest.raises(ClientError, match="AccessDenied"):
            client.delete_object(
                Bucket=bucket_of(site), Key=version["Key"], VersionId=version["VersionId"]
            )
    assert list(site.images().values())[-1] == site.contents() and site.scrubbed() == []


def test_what_is_removed_is_given_back_later_s3(
    client: Any, locked: MakeLocked, commands_for: Callable[[Site], Commands]
) -> None:
    site = locked(SHORT)
    for turn in range(3):
        site.backup()
        site.image().write_bytes(random.Random(turn + 10).randbytes(20 * GRAIN))
    commands = commands_for(site)
    contents = list(site.images().values())[-1]
    begun = time.time()
    done = commands.json("prune", "--keep-last", "1", "--max-removed", "100%")
    assert len(done["removed"]) == 2 and done["freed"] < GRAIN and done["waiting"] > 40 * GRAIN
    assert begun + SHORT - 1 <= done["waiting_until"] <= time.time() + SHORT + 1
    assert "may not be removed for good before" in commands.run("list")[0]
    file = site.root / "archive.prom"
    commands.run("status", "--metrics", str(file))
    status = commands.json("status")["lock"]
    assert status["waiting"] == done["waiting"] and status["retention"] == SHORT
    assert 0 < status["until"] <= status["last"] <= time.time() + SHORT + 1
    told = {
        family.name.removeprefix("sparsebak_lock_"): family.samples[0].value
        for family in text_string_to_metric_families(file.read_text())
    }
    assert told["first_timestamp_seconds"] == status["until"]
    assert told["last_timestamp_seconds"] == status["last"]
    assert told["waiting_bytes"] == done["waiting"]
    assert told["waiting_timestamp_seconds"] == status["waiting_until"]
    assert "may not be removed for good before" in commands.run("status")[0]
    plan = commands.json("prune", "--keep-last", "1", "--dry-run")
    assert plan["lock"]["waiting"] == done["waiting"]

    def told() -> list[tuple[str, str]]:
        found = commands.json("doctor", expect=None)["findings"]
        rows = [row for row in found if "may not be removed for good" in row["what"]]
        return [(row["state"], row["work"]) for row in rows]

    assert told() == [("ok", "prune")] or done["waiting_until"] < time.time()
    assert list(site.images().values()) == [contents]
    before = sum(version["Size"] for version in versions(client, site))
    time.sleep(max(0.0, done["waiting_until"] + 1.1 - time.time()))
    assert told() == [("warn", "prune")], "now a prune gives it back"
    again = commands.json("prune", "--keep-last", "1", "--max-removed", "100%")
    assert again["removed"] == [] and again["freed"] >= done["waiting"]
    # What is overwritten by this run itself, its notes, waits again.
    assert again["waiting"] < GRAIN
    after = sum(version["Size"] for version in versions(client, site))
    assert after <= before - done["waiting"] + GRAIN
    assert list(site.images().values()) == [contents] and site.scrubbed() == []


def test_what_stays_is_locked_again_s3(
    client: Any, locked: MakeLocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = locked(DAYS)

    def dates() -> dict[str, float]:
        found = versions(client, site)
        return {one["Key"]: until(client, site, one) for one in found if one["IsLatest"]}

    def later(days: float) -> None:
        now = Bucket.now
        monkeypatch.setattr(Bucket, "now", lambda bucket: now(bucket) + days * 86400)

    site.backup()
    first = dates()
    later(14)
    site.backup()
    assert dates().items() >= first.items()  # more than half is left
    later(2)
    site.backup()
    all_locked(client, site, 16 * 86400 + DAYS / 2 - 120)
    assert all(at > time.time() + 16 * 86400 + DAYS - 120 for at in map(dates().__getitem__, first))
    later(10)
    second = dates()
    site.backup()
    assert dates().items() >= second.items()


@pytest.mark.parametrize("last", [1, 6])
def test_a_run_that_dies_before_it_locked_what_it_stored_s3(
    client: Any, locked: MakeLocked, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, count = locked(DAYS), itertools.count(1)
    sound = Vault.stored

    def stored(vault: Vault, name: str) -> None:
        if next(count) >= last:
            raise ForbiddenError("the store is gone")
        sound(vault, name)

    with monkeypatch.context() as patched:
        patched.setattr(Vault, "stored", stored)
        with pytest.raises((SparsebakError, AssertionError)):
            site.backup()
    site.backup()
    all_locked(client, site, DAYS - 120)
    assert list(site.images().values())[-1] == site.contents()


def test_dates_that_are_forgotten_are_set_again_s3(client: Any, locked: MakeLocked) -> None:
    """As by another machine, which has no catalog yet."""
    site = locked(DAYS)
    site.backup()
    before = {one["VersionId"]: until(client, site, one) for one in versions(client, site)}
    time.sleep(1.1)
    os.environ["XDG_CACHE_HOME"] += "-other"
    site.backup()
    for one in versions(client, site):
        if one["IsLatest"] and one["VersionId"] in before:
            assert until(client, site, one) > before[one["VersionId"]]


@pytest.mark.parametrize("cache", ["kept", "thrown away"])
def test_a_retention_that_was_taken_out_holds_s3(
    client: Any, locked: MakeLocked, cache: str
) -> None:
    """Whoever has the key writes an archive.toml that says nothing of it."""
    site = locked(DAYS)
    site.backup()
    if cache == "thrown away":
        shutil.rmtree(os.environ["XDG_CACHE_HOME"])
    storage = open_storage(site.archive)
    load(storage)._replace(retention=0).save(storage)
    change(site.image(), random.Random(2), resize=False)
    with site.open(True) as archive:
        assert any("somebody may have replaced that file" in one for one in archive.warnings)
    before = {one["VersionId"] for one in versions(client, site)}
    site.backup()
    new = [one for one in versions(client, site) if one["VersionId"] not in before]
    assert new and all(until(client, site, one) > time.time() + DAYS - 120 for one in new)


def test_a_retention_that_was_taken_out_holds_in_a_new_catalog_s3(
    client: Any, locked: MakeLocked
) -> None:
    """Whoever has the key also removes a pack, so that the catalog is made again."""
    site = locked(DAYS)
    site.backup()
    storage = open_storage(site.archive)
    load(storage)._replace(retention=0).save(storage)
    gone = next(one for one in versions(client, site) if one["Key"].endswith(".pack"))
    client.delete_object(Bucket=bucket_of(site), Key=gone["Key"])
    before = {one["VersionId"] for one in versions(client, site)}
    with site.open(True) as archive:
        assert archive.derived and holding.state(archive)
        assert any("somebody may have replaced that file" in one for one in archive.warnings)
    site.backup()
    new = [one for one in versions(client, site) if one["VersionId"] not in before]
    assert new and all(until(client, site, one) > time.time() + DAYS - 120 for one in new)


def test_what_is_locked_for_longer_does_not_come_back_s3(
    client: Any, locked: MakeLocked, commands_for: Callable[[Site], Commands]
) -> None:
    """By a retention of the bucket's own, say: a marker alone says that it was removed."""
    site = locked(SHORT)
    for turn in range(3):
        site.backup()
        site.image().write_bytes(random.Random(turn + 10).randbytes(20 * GRAIN))
    for one in versions(client, site):
        date = datetime.now(UTC) + timedelta(days=1)
        client.put_object_retention(
            Bucket=bucket_of(site),
            Key=one["Key"],
            VersionId=one["VersionId"],
            Retention={"Mode": "COMPLIANCE", "RetainUntilDate": date},
        )
    commands, rules = commands_for(site), ("--keep-last", "1", "--max-removed", "100%")
    assert len(commands.json("prune", *rules)["removed"]) == 2
    there = {one["Key"] for one in versions(client, site) if one["IsLatest"]}
    time.sleep(SHORT + 1.1)
    assert commands.json("prune", *rules)["freed"] < GRAIN
    now = {one["Key"] for one in versions(client, site) if one["IsLatest"]}
    assert {one for one in now if "notes" not in one} == {
        one for one in there if "notes" not in one
    }


def test_a_clock_that_is_ahead_locks_nothing_for_longer_s3(
    client: Any, locked: MakeLocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, now = locked(DAYS), time.time
    with monkeypatch.context() as patched:
        patched.setattr(bucket.time, "time", lambda: now() + 5 * 365 * 86400)
        if os.environ.get("SPARSEBAK_S3") == "ceph":  # as all but moto, it refuses such a clock
            with pytest.raises(SparsebakError, match="clock is 1825 days ahead, too far off"):
                site.backup()
            return
        site.backup()
    for one in versions(client, site):
        assert until(client, site, one) <= time.time() + DAYS + 60


def test_what_is_missing_keeps_all_that_is_below_s3(
    client: Any, locked: MakeLocked, commands_for: Callable[[Site], Commands]
) -> None:
    """Somebody removed a pack of the newest session; when prune runs all locks have run out."""
    site, packs = locked(SHORT), set[str]()
    for turn in range(3):
        site.image().write_bytes(random.Random(turn + 10).randbytes(20 * GRAIN))
        before = packs
        site.backup()
        packs = {one["Key"] for one in versions(client, site) if one["Key"].endswith(".pack")}
    gone = next(one for one in versions(client, site) if one["Key"] in packs - before)
    client.delete_object(Bucket=bucket_of(site), Key=gone["Key"])
    time.sleep(SHORT + 1.1)
    done = commands_for(site).json(
        "prune", "--keep-last", "1", "--max-removed", "100%", expect=None
    )
    assert done["freed"] == 0
    assert gone["VersionId"] in {one["VersionId"] for one in versions(client, site)}


def test_of_what_cannot_be_locked_no_lock_is_told_s3(
    client: Any, locked: MakeLocked, commands_for: Callable[[Site], Commands]
) -> None:
    """As it was, and in a folder to which all of its files were fetched by other means."""
    site = locked(DAYS)
    site.backup()
    commands = commands_for(site)
    assert commands.json("status")["lock"]["retention"] == DAYS
    folder = site.root / "fetched"
    for one in versions(client, site):
        path = folder / one["Key"].partition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(bucket_of(site), one["Key"], str(path))
    assert commands.json("--archive", str(folder), "status")["lock"] is None
    time.sleep(1.1)
    now = datetime.now(UTC).isoformat()
    assert commands.json("--as-of", now, "status")["lock"] is None
    said = commands.run("--as-of", now, "doctor", expect=None)[0]
    assert "locked for" not in said and "mount it" not in said and "can only be read" in said


def test_the_state_of_an_archive_without_retention(site: Site) -> None:
    site.backup()
    with site.open() as archive:
        assert holding.state(archive) is None
