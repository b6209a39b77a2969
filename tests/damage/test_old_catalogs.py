# SPDX-License-Identifier: GPL-2.0-or-later
"""A catalog that is old, lies, or is no file of ours is no reason to do anything."""

import contextlib
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from backup_vm.archive import catalog_file
from backup_vm.archive.archive import Archive
from backup_vm.archive.prune import prune
from backup_vm.archive.reclaim import reclaim
from backup_vm.archive.storage.files import LocalReader
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.volumes import stored_volumes
from tests.certainty import (
    newest,
    run,
    write,
)
from tests.commands import Commands
from tests.kit import GRAIN, Site

Make = Callable[[Site], Commands]


pytestmark = pytest.mark.usefixtures("small_packs")


def test_an_old_catalog_beside_newer_files_is_not_believed(built: Site) -> None:
    """As when the folder is copied while a prune runs: the holes cannot be seen from names and
    sizes.
    """
    first, copy = next(iter(built.images().values())), built.root / "copy"
    copy.mkdir()
    for name in ("archive.toml", "catalog.sqlite"):
        shutil.copy(built.archive / name, copy)
    with built.open(True) as archive:
        (series,) = archive.sessions().values()
        assert prune(archive, series[:2]).space > 0
    for name in ("packs", "volumes"):
        shutil.copytree(built.archive / name, copy / name)
    built.archive = copy
    built.image().write_bytes(first)
    assert run(built).done[0].stored > 0
    assert newest(built) == [first]
    built.verify_all()


def test_a_catalog_from_the_midst_of_a_prune_is_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lists the same files as there are: the session was gone, and the holes were not
    there yet.
    """
    monkeypatch.setattr(LocalStorage, "pack_size", 64 * GRAIN)  # one pack of both volumes
    built, old = (
        Site(tmp_path / "site", volumes=("work/private", "other/private")),
        tmp_path / "old",
    )
    for turn in range(2):
        for at, name in enumerate(built.volumes):
            (
                write(built, 10 * turn + at, 0, 8, name)
                if turn
                else built.image(name).write_bytes(random.Random(at).randbytes(8 * GRAIN))
            )
        built.backup()

    def copied(archive: Archive, candidates: IO[bytes] | None = None) -> tuple[int, int]:
        shutil.copy(built.archive / "catalog.sqlite", old)
        return reclaim(archive, candidates)

    monkeypatch.setattr("backup_vm.archive.prune.reclaim", copied)
    with built.open(True) as archive:
        (volume,) = (
            v for v in stored_volumes(archive, built.keys(archive), {}) if v.qube == "work"
        )
        assert prune(archive, volume.sessions[-1:]).space > 0
    shutil.copy(old, built.archive / "catalog.sqlite")
    run(built)
    assert newest(built) == [built.contents(name) for name in built.volumes]
    assert built.scrubbed() == []


def test_what_was_given_back_is_stored_again_where_no_hole_tells(built: Site) -> None:
    """The folder was copied with zeros in place of holes, and a session that cannot be read may
    need anything that its packs list.
    """
    first, copy = next(iter(built.images().values())), built.root / "copy"
    with built.open(True) as archive:
        (series,) = archive.sessions().values()
        assert prune(archive, series[:2]).space > 0
    for path in built.archive.rglob("*"):
        if path.is_file() and path.name != "catalog.sqlite":
            target = copy / path.relative_to(built.archive)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    built.archive = copy
    damaged = min(copy.rglob("*.session"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    built.image().write_bytes(first)
    assert run(built).done[0].stored > 0
    assert newest(built) == [first]


@pytest.mark.parametrize("size", [500, 5000, 9000])
def test_a_session_is_put_back_whose_chunks_were_small(tmp_path: Path, size: int) -> None:
    """What a hole takes of a chunk is seen, also where that is a block or less."""
    rng = random.Random(size)
    site = Site(tmp_path / "site")
    site.image().write_bytes(b"".join(rng.randbytes(size).ljust(GRAIN, b"x") for _ in range(9)))
    first = site.contents()
    site.backup()
    (file,) = site.archive.rglob("*.session")
    raw = file.read_bytes()
    for at in (2, 4, 5, 7):
        write(site, at, at, 1)
    site.backup()
    with site.open(True) as archive:
        (series,) = archive.sessions().values()
        prune(archive, series[:1])
    file.write_bytes(raw)
    site.image().write_bytes(first)
    run(site)
    assert newest(site) == [first]


def test_a_chunk_in_a_pack_that_there_is_not_is_stored_again(built: Site) -> None:
    """While a session cannot be read, what the catalog lists is looked at before it counts."""
    first = next(iter(built.images().values()))
    damaged = min(built.archive.rglob("*.session"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with built.open(True):
        pass
    with contextlib.closing(sqlite3.connect(built.archive / "catalog.sqlite")) as db, db:
        db.execute("UPDATE chunks SET pack = pack + 1000")
    built.image().write_bytes(first)
    assert run(built).done[0].stored > 0
    assert newest(built) == [first]


def test_a_session_is_put_back_where_no_hole_tells(built: Site) -> None:
    """The folder was copied with zeros in place of holes, onto an older copy of it."""
    first, copy = next(iter(built.images().values())), built.root / "copy"
    shutil.copytree(built.archive / "volumes", copy / "volumes")
    with built.open(True) as archive:
        (series,) = archive.sessions().values()
        assert prune(archive, series[:2]).space > 0
    for path in built.archive.rglob("*"):
        if path.is_file():
            target = copy / path.relative_to(built.archive)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    built.archive = copy
    built.image().write_bytes(first)
    assert run(built).done[0].stored > 0
    assert newest(built) == [first]
    with built.open(True) as archive:  # and it is not believed later either
        archive.rebuild_catalog()
        assert not archive.warnings
    assert newest(built) == [first]


def test_an_old_catalog_is_no_reason_to_free_or_to_deduplicate(built: Site) -> None:
    old = built.root / "old.sqlite"
    first = next(iter(built.images().values()))
    shutil.copy(built.archive / "catalog.sqlite", old)
    with built.open(True) as archive:
        (series,) = archive.sessions().values()
        prune(archive, series[:2])
    shutil.copy(old, built.archive / "catalog.sqlite")
    built.image().write_bytes(first)
    built.backup()
    assert newest(built) == [first] and built.scrubbed() == []


def test_what_the_catalog_calls_freed_is_a_candidate_only(built: Site) -> None:
    images = built.images()
    database = sqlite3.connect(built.archive / "catalog.sqlite")
    database.execute("INSERT INTO freed SELECT pack, offset, length FROM chunks")
    database.execute("INSERT INTO freed SELECT pack, offset - 20, length + 9 FROM chunks")
    database.execute("INSERT INTO meta VALUES ('reclaiming', '1')")
    database.commit()
    database.close()
    built.backup()
    with built.open(True) as archive:
        (series,) = archive.sessions().values()
        prune(archive, series[-1:])
    assert built.images() == images and built.scrubbed() == []


STRANGE = {
    "trigger": "CREATE TRIGGER t AFTER DELETE ON packs BEGIN DELETE FROM chunks; END",
    "view": "CREATE VIEW v AS SELECT * FROM chunks",
    "table": "CREATE TABLE other (x)",
    "index": "CREATE INDEX i ON chunks (offset)",
    "other type": "ALTER TABLE freed ADD COLUMN more",
}


@pytest.mark.parametrize("strange", STRANGE)
def test_a_catalog_whose_schema_is_not_ours_is_thrown_away(built: Site, strange: str) -> None:
    images = built.images()
    path = built.archive / "catalog.sqlite"
    database = sqlite3.connect(path)
    database.execute(STRANGE[strange])
    database.close()
    with built.open() as archive:
        archive.catalog.count()
        assert "rebuilt" in archive.warnings[0] and not archive.found
    built.backup()
    database = sqlite3.connect(path)
    kinds = database.execute("SELECT type FROM sqlite_master").fetchall()
    database.close()
    assert ("trigger",) not in kinds and ("view",) not in kinds
    assert list(built.images().items())[:3] == list(images.items())


@pytest.mark.parametrize("version", ["1", "3"])
def test_a_catalog_of_another_version_is_made_again(built: Site, version: str) -> None:
    images = built.images()
    with contextlib.closing(sqlite3.connect(built.archive / "catalog.sqlite")) as db, db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'version'", (version,))
    with built.open(True) as archive:
        (said,) = archive.warnings
        assert "another version" in said and archive.derived
    with built.open(True) as archive:
        assert not archive.warnings
    assert built.images() == images and built.scrubbed() == []


@pytest.mark.parametrize("kind", ["link", "folder", "fifo", "hard link", "wal", "journal link"])
def test_a_catalog_that_is_no_file_of_its_own_is_replaced(built: Site, kind: str) -> None:
    images, path = built.images(), built.archive / "catalog.sqlite"
    victim = built.root / "victim"
    victim.write_bytes(path.read_bytes() if "link" in kind else b"precious")
    if kind == "wal":
        path.with_name(path.name + "-wal").symlink_to(victim)
    elif kind == "journal link":
        path.with_name(path.name + "-journal").unlink(missing_ok=True)
        path.with_name(path.name + "-journal").symlink_to(victim)
    else:
        path.unlink()
        if kind == "link":
            path.symlink_to(victim)
        elif kind == "hard link":
            os.link(victim, path)
        elif kind == "folder":
            (path / "within").mkdir(parents=True)
        else:
            os.mkfifo(path)
    before = victim.read_bytes()
    assert built.images() == images
    built.backup()
    assert victim.read_bytes() == before and path.is_file() and not path.is_symlink()
    assert built.scrubbed() == []


def test_a_journal_of_somebody_elses_removes_nothing(built: Site, tmp_path: Path) -> None:
    """SQLite removes the super-journal that a journal names, when it plays that journal back."""
    path, victim = built.archive / "catalog.sqlite", tmp_path / "victim"
    victim.write_bytes(b"precious")
    name = str(victim).encode()
    page = path.read_bytes()[16:18]
    size = int.from_bytes(page, "big")
    head = bytes.fromhex("d9d505f920a163d7") + bytes(4) + bytes(4)
    head += (
        (path.stat().st_size // size).to_bytes(4, "big")
        + (512).to_bytes(4, "big")
        + page.rjust(4, b"\0")
    )
    tail = (1 << 30 // size).to_bytes(4, "big") + name + len(name).to_bytes(4, "big")
    tail += sum(name).to_bytes(4, "big") + bytes.fromhex("d9d505f920a163d7")
    path.with_name(path.name + "-journal").write_bytes(head.ljust(512, b"\0") + tail)
    images = built.images()
    built.backup()
    assert victim.read_bytes() == b"precious" and len(images) == 3


def test_an_equal_catalog_is_believed_without_reading_anything(
    built: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(built, 8, 1)
    built.backup()
    opened: list[str] = []
    original = LocalReader.__init__

    def reading(self: LocalReader, *rest: object) -> None:
        opened.append(str(rest))
        original(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalReader, "__init__", reading)
    monkeypatch.setattr(
        "backup_vm.archive.sessions.load", lambda *_: pytest.fail("a session was read")
    )
    with built.open() as archive:
        assert archive.catalog.count()[0] and not opened and not archive.warnings
    with built.open(True) as archive:
        assert archive.catalog.count()[0] and not opened and not archive.warnings


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (sqlite3.SQLITE_FULL, "is full"),
        (sqlite3.SQLITE_IOERR, "cannot be read or written"),
        (sqlite3.SQLITE_READONLY, "read-only"),
    ],
)
def test_errors_of_the_catalogs_disk_are_reported_as_what_they_are(code: int, said: str) -> None:
    error = sqlite3.OperationalError("x")
    error.sqlite_errorcode = code
    error.sqlite_errorname = {
        sqlite3.SQLITE_FULL: "SQLITE_FULL",
        sqlite3.SQLITE_IOERR: "SQLITE_IOERR_WRITE",
        sqlite3.SQLITE_READONLY: "SQLITE_READONLY",
    }[code]
    assert said in str(catalog_file.explain(error, "the catalog"))
    assert catalog_file.is_damage(error) == (code == sqlite3.SQLITE_IOERR)


def test_new_volumes_are_looked_through_in_a_few_listings(
    built: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many they are: each listing is of all of them."""
    file = min(built.archive.rglob("*.session"))
    for number in range(40):
        folder = built.archive / "volumes" / f"{number:032x}"
        folder.mkdir()
        shutil.copy(file, folder)
    listings, names = 0, LocalStorage.names

    def counting(*words: str) -> list[str]:
        nonlocal listings
        listings += words[1] == "volumes"
        return names(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalStorage, "names", counting)
    with built.open() as archive:
        assert archive.catalog and len(archive.damaged) == 40
    assert listings < 20
