# SPDX-License-Identifier: GPL-2.0-or-later
"""What is many requests: a listing of many packs, of which one opens an archive in which nothing
changed; and requests for each pack, which wait for each other no more than they must.
"""

import os
import random
from pathlib import Path

import pytest

from backup_vm.archive import opening, pack_writer
from backup_vm.archive.format import NO_BASE
from backup_vm.archive.intake import Entry, Incoming
from backup_vm.archive.pack_writer import PackWriter
from backup_vm.archive.packs import NewPack
from backup_vm.archive.prune import prune
from backup_vm.archive.scrub import scrub
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.archive.storage.remote import RemoteStorage
from backup_vm.terminal.progress import Progress
from tests.kit import GRAIN, Site, fill
from tests.remote.stores import Lying, Slow

PACKS = 3_000
"""Three pages of a listing of S3's, and so many requests."""
URL = "s3://bucket/many"


@pytest.fixture
def store(quick_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Lying:
    """An archive with a session, and many packs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(quick_folder / "cache"))
    site = Site(quick_folder / "site")
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


def test_packs_are_read_and_removed_several_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(LocalStorage, "pack_size", GRAIN)
    site = Site(tmp_path / "site")
    for seed in (1, 2):
        site.image().write_bytes(random.Random(seed).randbytes(12 * GRAIN))
        site.backup()
    slow = Slow(site.archive, 0.005)
    monkeypatch.setattr(opening, "open_storage", lambda _: RemoteStorage(URL, slow))

    def at_once() -> int:
        most, slow.most = slow.most, 0
        return most

    with opening.open_archive(URL, True) as archive:
        packs = archive.pack_files()
        assert len(packs) > 12 and at_once() >= 4  # the catalog was made
        assert list(scrub(archive, Progress())) == [] and at_once() >= 4
        ((first, *_),) = archive.sessions().values()
        done = prune(archive, [first])
        assert done.space > 0 and at_once() >= 4
        assert len(archive.pack_files()) <= len(packs) - 10
        assert list(scrub(archive, Progress())) == []


def test_packs_grow_so_that_something_is_on_its_way_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(pack_writer, "FIRST", 4 << 10)
    monkeypatch.setattr(RemoteStorage, "pack_size", 32 << 10)
    site = Site(tmp_path / "site")
    fill(site.image(), GRAIN)
    site.backup()
    with site.open() as archive:
        ((session,),) = archive.sessions().values()
    store = Slow(site.archive, 0)
    monkeypatch.setattr(opening, "open_storage", lambda _: RemoteStorage(URL, store))
    with opening.open_archive(URL, True) as archive:
        before, writer = archive.storage.sizes("packs"), PackWriter(archive)
        incoming = Incoming(archive, writer, session.record, NO_BASE, 0, bytes(16))
        for number in range(100):
            incoming.take(Entry(number, os.urandom(32), os.urandom(1000)))
        writer.flush()
        sizes = [s for n, s in archive.storage.sizes("packs").items() if n not in before]
        incoming.give_up()
        writer.close()
    # In units of the first one; one of two units is what was left for the last.
    assert [size >> 12 for size in sorted(sizes)] == [1, 2, 2, 4, 8, 8], sizes
