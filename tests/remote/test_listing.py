# SPDX-License-Identifier: GPL-2.0-or-later
"""A listing of many packs is many requests: an archive in which nothing changed is opened with
one.
"""

import os
from pathlib import Path

import pytest

from backup_vm.archive import opening
from backup_vm.archive.packs import NewPack
from backup_vm.archive.storage.remote import RemoteStorage
from tests.kit import GRAIN, Site, fill
from tests.remote.stores import Lying

PACKS = 3_000
"""Three pages of a listing of S3's, and so many requests."""
URL = "s3://bucket/many"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lying:
    """An archive with a session, and many packs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    site = Site(tmp_path / "site")
    fill(site.image(), 6 * GRAIN, 1)
    site.backup()
    with site.open(True) as archive:
        pack = NewPack(archive.storage, archive.parameters.archive)
        pack.add(bytes(range(32)), bytes(range(50)))
        pack.finish()
        raw = (site.archive / pack.name).read_bytes()
    for _ in range(PACKS):
        name = os.urandom(16).hex()
        path = site.archive / "packs" / name[:2] / f"{name}.pack"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(raw)
    (site.archive / "catalog.sqlite").unlink()
    found = Lying(site.archive)
    monkeypatch.setattr(opening, "open_storage", lambda _: RemoteStorage(URL, found))
    return found


def test_one_listing_opens_an_archive_of_many_packs(store: Lying) -> None:
    with opening.open_archive(URL, True) as archive:
        assert len(archive.pack_files()) > PACKS
        chunks = archive.catalog.count()
    for writing in (True, False):
        store.lists = store.looks = 0
        with opening.open_archive(URL, writing) as archive:
            assert archive.catalog.count() == chunks and not archive.warnings
            assert len(archive.sessions()) == 1
        assert store.lists == 1 and store.looks <= 2 * writing, (store.lists, store.looks)
