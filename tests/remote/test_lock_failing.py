# SPDX-License-Identifier: GPL-2.0-or-later
"""Archives with a retention, made, copied to, backed up to and pruned by runs that are killed in
place of each of their requests, or refused it: the same command again makes it whole, and then
everything is locked. And a store that knows no locks.
"""

import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backup_vm.archive.scrub import scrub
from backup_vm.archive.storage.bucket import Bucket
from backup_vm.terminal.progress import Progress
from tests.kit import GRAIN, PASSPHRASE, Site, change
from tests.remote.dying import KILLED, REFUSED
from tests.remote.kit import Server
from tests.remote.lock_kit import DAYS, PATH, bucket_of, client_of, locked_site, versions
from tests.remote.test_lock import all_locked
from tests.steps import DIED

LONG = os.environ.get("SPARSEBAK_LONG") == "1"
"""All commands, and each of their requests; else one of two, for each is some processes.
"""


@pytest.fixture(scope="module")
def server(s3: Server) -> Server:
    return s3


@pytest.fixture
def client(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """What whoever has the key can do, by boto3."""
    return client_of(server, monkeypatch, tmp_path / "cache")


@dataclass
class Ended:
    """How a run ended, and how many requests it made, if it came to its end."""

    code: int
    err: str
    requests: int


def ran(site: Site, words: tuple[str, ...], how: str = KILLED, fatal: int = 0) -> Ended:
    """Run a command that dies, or is refused, at one of its requests."""
    count = site.root / "requests"
    count.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.remote.dying", how, str(fatal), count, "-u", *words],
        env={**os.environ, "SPARSEBAK_AGENT": f"local:{site.config}", "HOME": str(site.root)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    made = int(count.read_text()) if count.exists() else 0
    return Ended(done.returncode, done.stderr, made)


def fresh(client: Any, folder: Path, name: str) -> tuple[Site, str]:
    """A site with a session in a folder, and a place in a bucket with object lock for another
    archive.
    """
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    site = Site(folder / name)
    site.image().write_bytes(random.Random(1).randbytes(9 * GRAIN))
    site.backup()
    (site.root / "pw").write_bytes(PASSPHRASE)
    site.add_archive("locked", site.root / "only-in-dom0")
    return site, f"s3://{name}/{PATH}"


CASES = {
    "init": ("init", "{place}", "--label", "locked", "--retention", "30d"),
    "copy": ("--archive", "{archive}", "copy", "{place}", "--retention", "30d"),
}


@pytest.mark.parametrize("how", [KILLED, REFUSED] if LONG else [KILLED])
@pytest.mark.parametrize("case", CASES if LONG else ["init"])
def test_one_that_is_made_s3(client: Any, tmp_path: Path, case: str, how: str) -> None:
    def words(site: Site, place: str) -> tuple[str, ...]:
        return tuple(word.format(place=place, archive=site.archive) for word in CASES[case])

    stem = f"{case}-{how}-{os.getpid()}"
    site, place = fresh(client, tmp_path, f"{stem}-0")
    most = ran(site, words(site, place)).requests
    assert most > 3
    for fatal in range(1, most + 1) if LONG else [most // 2]:
        site, place = fresh(client, tmp_path, f"{stem}-{fatal}")
        died = ran(site, words(site, place), how, fatal)
        assert died.code == DIED if how == KILLED else died.code >= 0, (fatal, died)
        again = ran(site, words(site, place))
        assert again.code == 0 or (case == "init" and "archive in" in again.err), (fatal, again)
        image = site.contents()
        site.archive = place  # type: ignore[assignment]
        if case == "init":
            assert ran(site, ("--archive", place, "backup")).code == 0, fatal
        else:
            key = ("--passphrase-file", str(site.root / "pw"))
            words_of = ("--archive", place, "assemble", "work/private", "-o")
            target = site.root / "out.img"
            assert ran(site, (*words_of, str(target), *key)).code == 0, fatal
            assert target.read_bytes() == image, fatal
        all_locked(client, site, DAYS - 120)
        if LONG:
            assert ran(site, ("--archive", place, "scrub")).code == 0, fatal


@pytest.mark.parametrize("how", [KILLED, REFUSED] if LONG else [KILLED])
def test_one_that_is_backed_up_to_s3(client: Any, tmp_path: Path, how: str) -> None:
    site = locked_site(client, tmp_path, DAYS)
    words = ("--archive", str(site.archive), "backup")
    most = ran(site, words).requests
    assert most > 3
    for fatal in range(1, most + 1) if LONG else [most // 2]:
        change(site.image(), random.Random(fatal), resize=False)
        site.image().write_bytes(site.contents()[:-1] + bytes([fatal % 256]))
        died = ran(site, words, how, fatal)
        assert died.code in (DIED, 0) if how == KILLED else died.code >= 0, (fatal, died)
        again = ran(site, words)
        assert again.code == 0, (fatal, again)
        all_locked(client, site, DAYS - 600)
    assert list(site.images().values())[-1] == site.contents()


def test_a_copy_in_a_bucket_without_locks_is_not_written_over_s3(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied by other means to a store that knows no locks, which takes one for new contents."""
    site, name = locked_site(client, tmp_path, DAYS), f"plain-{os.getpid()}"
    site.backup()
    client.create_bucket(Bucket=name)
    for one in versions(client, site):
        source = {"Bucket": bucket_of(site), "Key": one["Key"]}
        client.copy_object(Bucket=name, Key=one["Key"], CopySource=source)
    site.archive = f"s3://{name}/{PATH}"  # type: ignore[assignment]

    def retain(_: Bucket, key: str, until: int, version: str = "") -> int:
        client.put_object(Bucket=name, Key=f"{PATH}/{key}", Body=b"<Retention></Retention>")
        return until

    monkeypatch.setattr(Bucket, "retain", retain)
    change(site.image(), random.Random(2), resize=False)
    with site.open(True) as archive:
        assert any("its bucket has no object lock" in one for one in archive.warnings)
    site.backup()
    assert list(site.images().values())[-1] == site.contents() and len(site.images()) == 2
    with site.open(True) as archive:
        assert not archive.damaged and [*scrub(archive, Progress())] == []
