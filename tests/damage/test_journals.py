# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run that was killed in a transaction leaves beside the catalog."""

import contextlib
import sqlite3

from tests.kit import Site


def test_a_journal_of_the_catalog_before_is_not_played_back_into_a_new_one(built: Site) -> None:
    """A run was killed while it wrote to the catalog, that was removed, and the next run was killed
    when it had made another.
    """
    catalog, journal = built.archive / "catalog.sqlite", built.archive / "catalog.sqlite-journal"
    half = built.archive / "catalog.sqlite.tmp"
    with contextlib.closing(sqlite3.connect(catalog, isolation_level=None)) as db:
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


def test_a_reader_tells_a_catalog_that_is_half_written_from_a_damaged_one(built: Site) -> None:
    images, catalog = built.images(), built.archive / "catalog.sqlite"
    with contextlib.closing(sqlite3.connect(catalog, isolation_level=None)) as db:
        db.execute("BEGIN")
        db.execute("UPDATE chunks SET offset = 1")
        with built.open() as archive:
            archive.catalog.count()
            (said,) = archive.warnings
            assert "half written" in said
        db.execute("ROLLBACK")
    assert built.images() == images
