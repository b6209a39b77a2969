# SPDX-License-Identifier: GPL-2.0-or-later
"""A rebuild of the catalog that is cut off is resumed, and what it left is believed no more than a
catalog.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from backup_vm.archive import catalog_file, gathering, noting, packs, reconcile
from backup_vm.archive.catalog import ChunkCatalog
from backup_vm.archive.incomplete import incomplete
from backup_vm.archive.storage import Storage, open_storage
from backup_vm.jobs.reading import read_image
from backup_vm.jobs.scrubbing import scrub_part
from backup_vm.terminal.progress import Progress
from tests.kit import Site

pytestmark = pytest.mark.usefixtures("small_packs")


class Killed(BaseException):
    """Of the run."""


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of packs whose index was read in rebuilds."""
    monkeypatch.setattr(gathering, "AT_ONCE", 6)
    found: list[str] = []
    read = packs.read_index

    def index(storage: Storage, name: str, archive: bytes) -> list[packs.Packed]:
        found.append(name)
        return read(storage, name, archive)

    monkeypatch.setattr(packs, "read_index", index)
    return found


def lose(built: Site) -> None:
    (built.archive / "catalog.sqlite").unlink()


def state(built: Site) -> tuple[bytes, int]:
    with built.open() as archive:
        return archive.catalog.digest(), len(archive.pack_files())


def cut_off(built: Site, reads: list[str], after: int) -> Path:
    """Begin a rebuild, and be killed in it; returns what that leaves."""
    assert was_cut_off(built, reads, after)
    return built.archive / catalog_file.GATHERED


def was_cut_off(built: Site, reads: list[str], after: int) -> bool:
    """Begin a rebuild that would be killed after so many packs; whether it was."""
    with pytest.MonkeyPatch.context() as patch:
        read = packs.read_index

        def index(storage: Storage, name: str, archive: bytes) -> list[packs.Packed]:
            if len(reads) == after:
                raise Killed
            return read(storage, name, archive)

        patch.setattr(packs, "read_index", index)
        try:
            with built.open(True):
                return False
        except Killed:
            return True


def test_a_rebuild_that_was_cut_off_reads_only_what_is_missing(
    built: Site, reads: list[str]
) -> None:
    whole, count = state(built)
    lose(built)
    left = cut_off(built, reads, count - 1)
    assert left.exists() and len(reads) == count - 1
    with sqlite3.connect(left) as database:
        done = {name for (name,) in database.execute("SELECT name FROM packs")}
    database.close()
    assert len(done) >= count // 2  # of the last few not all rows were put away
    reads.clear()
    with built.open(True):
        pass
    assert done.isdisjoint(reads) and len(done) + len(reads) == count
    assert not left.exists() and state(built) == (whole, count)
    built.verify_all()
    assert built.scrubbed() == []


def test_what_was_pruned_meanwhile_is_left_out(built: Site, reads: list[str]) -> None:
    """As by another machine, which has removed packs and stored others."""
    whole, count = state(built)
    lose(built)
    cut_off(built, reads, count - 1)
    first = sorted((built.archive / "packs").rglob("*.pack"))[0]
    aside = built.root / "aside"
    first.rename(aside)
    with built.open(True) as archive:
        assert archive.catalog.digest() != whole and archive.catalog.spoilt()
    aside.rename(first)
    built.backup()
    assert built.scrubbed() == []
    built.verify_all()


def test_one_that_is_cut_off_each_time_ends_although_chunks_are_missing(
    built: Site, reads: list[str]
) -> None:
    """What the first reading lacks is looked for in a second one, which is resumed, too."""
    whole, count = state(built)
    lose(built)
    cut_off(built, reads, 3)
    next(built.archive.rglob("*.pack")).unlink()
    for _ in range(2 * count):
        reads.clear()
        if not was_cut_off(built, reads, 3):
            break
    else:
        pytest.fail("it never ends")
    with built.open(True) as archive:
        assert archive.catalog.spoilt() and archive.catalog.digest() != whole
    assert not (built.archive / catalog_file.GATHERED).exists()
    built.backup()
    with built.open() as archive:
        (series,) = archive.sessions().values()
        assert series[-1].file not in incomplete(archive, archive.sessions())


def test_a_pack_whose_index_was_damaged_is_read_again(built: Site, reads: list[str]) -> None:
    """It may be put back from a copy between two runs."""
    whole, count = state(built)
    lose(built)
    first = sorted(built.archive.rglob("*.pack"))[0]
    sound = first.read_bytes()
    first.write_bytes(sound[:-20] + bytes(20))
    left = cut_off(built, reads, count - 1)
    assert left.exists()
    first.write_bytes(sound)
    reads.clear()
    with built.open(True) as archive:
        assert str(first.relative_to(built.archive)) in reads
        assert archive.catalog.digest() == whole and not any(
            "damaged" in w for w in archive.warnings
        )


def test_what_is_left_and_is_no_file_of_ours_is_not_looked_at(
    built: Site, reads: list[str]
) -> None:
    whole, count = state(built)
    lose(built)
    left = cut_off(built, reads, count - 1)
    sound = left.read_bytes()

    def altered(statement: str) -> bytes:
        left.write_bytes(sound)
        with sqlite3.connect(left) as database:
            database.execute(statement)
        database.close()
        return left.read_bytes()

    for raw in (
        b"",
        b"nothing of ours",
        sound[: len(sound) // 2],
        altered("UPDATE meta SET value = 'another'"),
        altered("CREATE TRIGGER mine AFTER DELETE ON gathered BEGIN DELETE FROM packs; END"),
        altered("UPDATE packs SET size = size + 1"),
        altered("UPDATE gathered SET rows = substr(rows, 2)"),
        altered("UPDATE gathered SET rows = 7"),
        altered("UPDATE gathered SET checksum = zeroblob(16)"),
        altered(
            "UPDATE gathered SET rows = CAST(substr(rows, 1, 30) || x'00' || substr(rows, 32)"
            " AS BLOB)"
        ),
        altered("INSERT INTO meta VALUES ('again', '2')"),
        altered("UPDATE gathered SET part = 1023 - part"),
        altered("UPDATE gathered SET part = 'x'"),
        altered("DELETE FROM gathered"),
        altered("UPDATE packs SET number = number + 1000"),
    ):
        left.write_bytes(raw)
        (built.archive / "catalog.sqlite").unlink(missing_ok=True)
        with built.open(True):
            pass
        assert not left.exists() and state(built) == (whole, count)
    left.symlink_to("/etc/passwd")
    lose(built)
    with built.open(True):
        pass
    assert not left.is_symlink() and state(built) == (whole, count)


def test_a_reader_leaves_nothing(built: Site, reads: list[str]) -> None:
    whole, count = state(built)
    before = sorted(built.archive.rglob("*"))
    lose(built)
    assert state(built) == (whole, count) and len(reads) == count
    assert sorted(built.archive.rglob("*")) == [
        path for path in before if path.name != "catalog.sqlite"
    ]


def test_where_most_packs_are_new_all_are_read_again(
    built: Site, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine whose catalog is old; what it remembers is kept."""
    whole, count = state(built)
    reads.clear()
    with built.open(True) as archive:
        (volume,) = archive.sessions()
        number, name = next(iter(archive.catalog.packs().items()))
        archive.catalog.marks.compare(volume)
        for other, _ in list(archive.catalog.packs().items()):
            if other != number:
                archive.catalog.drop_pack(other)
    monkeypatch.setattr(reconcile, "MANY", 2)
    with built.open(True) as archive:
        assert name in reads and len(reads) == count
        assert archive.catalog.digest() == whole and not archive.warnings
        assert archive.catalog.marks.must_compare(volume)


def test_copies_of_chunks_are_looked_at_part_by_part(
    built: Site, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pack twice, and of one of the two the first chunk is damaged."""
    whole, count = state(built)
    for path in sorted(built.archive.rglob("*.pack")):
        name = path.parent.name + os.urandom(15).hex()
        raw = bytearray(path.read_bytes())
        path.with_name(f"{name}.pack").write_bytes(raw)
        raw[200] ^= 1
        path.write_bytes(raw)
    lose(built)
    asked, packs_of = list[int](), ChunkCatalog.packs
    monkeypatch.setattr(ChunkCatalog, "packs", lambda one: asked.append(1) or packs_of(one))
    with built.open(True) as archive:
        assert len(asked) < 2 * count
        assert archive.catalog.digest() == whole and archive.catalog.marks.unclaimed
    assert list(built.images().values())[-1] == built.contents()


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
    lose(built)
    with built.open(True) as archive:
        assert archive.catalog.spoilt() == spoilt and archive.catalog.digest() == digest
        assert any("spoilt" in one for one in archive.warnings)
    built.backup()  # stores it again, in another pack
    lose(built)
    with built.open(True) as archive:
        (series,) = archive.sessions().values()
        assert series[-1].file not in incomplete(archive, archive.sessions())
        image = archive.image(series, series[-1])
        read_image(archive, image, built.keys(archive), "work/private", Progress(), None)


def test_where_there_is_no_room_for_it_it_is_gathered_elsewhere(
    built: Site, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive's disk may be full, for which pruning, and so the catalog, is the remedy."""
    whole, count = state(built)
    opened, places = gathering.Gathering._open, set()

    def little_room(self: gathering.Gathering) -> sqlite3.Connection:
        database = opened(self)
        places.add(self._path.parent)
        if self._path.parent == built.archive:
            database.execute("PRAGMA max_page_count=3")
        return database

    lose(built)
    monkeypatch.setattr(gathering.Gathering, "_open", little_room)
    with built.open(True):
        pass
    assert len(places) == 2 and not (built.archive / catalog_file.GATHERED).exists()
    assert not any(place.exists() for place in places - {built.archive})
    assert state(built) == (whole, count)
