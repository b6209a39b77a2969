# SPDX-License-Identifier: GPL-2.0-or-later
"""What only a catalog knows is in the one that is made in its place, also when the run that makes
it is killed; and what is damaged is known without any catalog.
"""

import sqlite3
from contextlib import closing

import pytest

from backup_vm.archive import noting, reconcile
from backup_vm.archive.catalog import ChunkCatalog
from backup_vm.archive.incomplete import incomplete
from backup_vm.archive.storage import open_storage
from backup_vm.jobs.reading import read_image
from backup_vm.jobs.scrubbing import scrub_part
from backup_vm.terminal.progress import Progress
from tests.kit import Site

pytestmark = pytest.mark.usefixtures("small_packs")


class Killed(BaseException):
    """Of the run."""


@pytest.mark.parametrize("what", ["a pack is gone", "a page is damaged"])
def test_what_no_file_tells_again_is_taken_over(built: Site, what: str) -> None:
    noting.scrubbed(open_storage(built.archive), True, [], [])
    with built.open(True) as archive:
        assert archive.catalog.marks.noted
    if what == "a pack is gone":
        next(built.archive.rglob("*.pack")).unlink()
    else:
        path = built.archive / "catalog.sqlite"
        with closing(sqlite3.connect(path)) as db:
            ((page,),) = db.execute("SELECT rootpage FROM sqlite_master WHERE name='chunks'")
            ((size,),) = db.execute("PRAGMA page_size")
        raw = bytearray(path.read_bytes())
        raw[(page - 1) * size : page * size] = bytes(size)
        path.write_bytes(raw)
        next(built.archive.rglob("*.session")).rename(built.root / "aside")
    (built.archive / "notes.json").unlink()
    with built.open(True) as archive:
        assert archive.derived and any("with it all tags" in one for one in archive.warnings)


@pytest.mark.parametrize("whole", [True, False], ids=["made", "half made"])
def test_dying_before_a_new_catalog_is_in_its_place_forgets_nothing(
    built: Site, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """What only the catalog knew is in the new one by then."""
    noting.scrubbed(open_storage(built.archive), True, [], [])
    with built.open(True) as archive:
        assert archive.catalog.marks.noted
        digest = archive.catalog.digest()

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed), built.open(True) as archive:
        patch.setattr(*((reconcile.os, "replace") if whole else (ChunkCatalog, "fill")), die)
        archive.rebuild_catalog()
    assert (built.archive / "catalog.sqlite").exists() is not whole
    assert (built.archive / "catalog.sqlite.tmp").exists()
    with built.open(True) as archive:
        assert archive.catalog.marks.noted and archive.catalog.digest() == digest
        assert not archive.warnings and not archive.derived
    assert not (built.archive / "catalog.sqlite.tmp").exists()
    built.verify_all()


def test_a_journal_of_the_catalog_before_is_not_played_back_into_a_new_one(built: Site) -> None:
    """A run was killed while it wrote to the catalog, that was removed, and the next run was killed
    when it had made another.
    """
    catalog, journal = built.archive / "catalog.sqlite", built.archive / "catalog.sqlite-journal"
    half = built.archive / "catalog.sqlite.tmp"
    with closing(sqlite3.connect(catalog, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous=OFF")  # each page is in the journal at once
        db.execute("BEGIN")
        db.execute("UPDATE meta SET value = 1")
        left = journal.read_bytes()
        db.execute("ROLLBACK")
    assert left
    with built.open(True) as archive:
        archive.catalog.marks.compare("00" * 16)
        digest = archive.catalog.digest()
    catalog.rename(half)
    journal.write_bytes(left)
    with built.open(True) as archive:
        assert archive.catalog.digest() == digest and not archive.warnings
        assert archive.catalog.marks.must_compare("00" * 16)
    built.verify_all()


@pytest.mark.parametrize("scrubs", [1, 2])
def test_what_is_damaged_is_not_taken_for_sound_without_a_catalog(built: Site, scrubs: int) -> None:
    """Scrubs found it, once or, then in a session that lacks it, again."""
    pack = sorted(built.archive.rglob("*.pack"))[0]
    raw = bytearray(pack.read_bytes())
    raw[200] ^= 1
    pack.write_bytes(raw)
    for _ in range(scrubs):
        with built.open(True) as archive:
            assert not scrub_part(archive, Progress(), None, None).sound
    with built.open() as archive:
        spoilt, digest = archive.catalog.spoilt(), archive.catalog.digest()
    assert spoilt
    (built.archive / "catalog.sqlite").unlink()
    with built.open(True) as archive:
        assert archive.catalog.spoilt() == spoilt and archive.catalog.digest() == digest
        assert any("spoilt" in one for one in archive.warnings)
    built.backup()  # stores it again, in another pack
    (built.archive / "catalog.sqlite").unlink()
    with built.open(True) as archive:
        (series,) = archive.sessions().values()
        assert series[-1].file not in incomplete(archive, archive.sessions())
        image = archive.image(series, series[-1])
        read_image(archive, image, built.keys(archive), "work/private", Progress(), None)
