"""What is not certain is not used: lost packs and sessions, old catalogs, lies in the catalog, files of other programs."""

import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from backup_vm.archive import catalog_file, store
from backup_vm.archive.prune import prune
from backup_vm.archive.storage.local import LocalReader, LocalStorage
from backup_vm.archiver import Archiver, Report
from backup_vm.errors import DamagedError
from backup_vm.interrupts import Interrupted
from backup_vm.names import stored_volumes
from backup_vm.progress import Progress
from backup_vm.reading import assemble
from tests.commands import Commands
from tests.kit import GRAIN, Site

CHUNKS = 16
Make = Callable[[Site], Commands]


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStorage, "pack_size", 3 * GRAIN)
    monkeypatch.setattr(store, "RECORD_SECONDS", 0)


@pytest.fixture
def built(tmp_path: Path) -> Site:
    """One volume with three sessions, each of which changed five chunks."""
    site = Site(tmp_path / "site")
    site.image().write_bytes(random.Random(1).randbytes(CHUNKS * GRAIN))
    site.backup()
    for seed in (2, 3):
        write(site, seed, seed)
        site.backup()
    return site


def write(site: Site, seed: int, at: int, chunks: int = 5, name: str = "work/private") -> None:
    with open(site.image(name), "r+b") as file:
        file.seek(at * GRAIN)
        file.write(random.Random(seed).randbytes(chunks * GRAIN))


def session_files(site: Site) -> list[Path]:
    return sorted(site.archive.rglob("*.session"))


def packs_take(site: Site) -> int:
    return sum(path.stat().st_blocks * 512 for path in site.archive.rglob("*.pack"))


def run(site: Site, progress: Progress | None = None) -> Report:
    with site.open(True) as archive:
        agent = site.agent(archive)
        try:
            return Archiver(archive, agent, progress or Progress()).run(agent.list())
        finally:
            agent.close()


def cut_off_after(site: Site, chunks: int) -> None:
    class Cut(Progress):
        left = chunks

        def advance(self, size: int) -> None:
            self.left -= 1
            if self.left == 0:
                raise Interrupted

    with pytest.raises(KeyboardInterrupt):
        run(site, Cut())


def newest(site: Site) -> list[bytes]:
    """The newest image of each volume, assembled and proven, in the order of the site's volumes."""
    found, target = {}, site.root / "newest.img"
    with site.open() as archive:
        keys = site.keys(archive)
        for volume in stored_volumes(archive, keys, {}):
            image = archive.image(list(volume.sessions), volume.sessions[-1])
            assemble(archive, image, keys, volume.name, target, Progress())
            found[volume.name] = target.read_bytes()
            target.unlink()
    return [found[name] for name in site.volumes]


# Packs


@pytest.mark.parametrize("harm", ["lost", "cut"])
def test_a_lost_pack_is_named_once_and_healed(built: Site, commands_for: Make, harm: str) -> None:
    pack = max(built.archive.rglob("*.pack"), key=lambda path: path.stat().st_size)
    if harm == "lost":
        pack.unlink()
    else:
        os.truncate(pack, 100)
    commands = commands_for(built)
    error = commands.run("backup", expect=4)[1]
    assert pack.name in error and "spoilt" in error
    commands.run("backup")
    commands.run("verify", "--passphrase-file", str(commands.passphrase))
    assert newest(built) == [built.contents()]


def test_a_lost_pack_whose_chunks_come_back_heals_old_sessions_too(built: Site) -> None:
    images = list(built.images().values())
    for pack in built.archive.rglob("*.pack"):
        pack.unlink()
    built.image().write_bytes(images[0])
    assert run(built).spoilt and built.images and not run(built).spoilt
    for image in images[1:]:
        built.image().write_bytes(image)
        built.backup()
    assert list(built.images().values())[:3] == images and built.scrubbed() == []


def test_a_pack_that_is_put_back_is_believed_again(built: Site) -> None:
    images = built.images()
    pack = next(built.archive.rglob("*.pack"))
    pack.rename(built.root / "aside")
    with built.open() as archive:
        archive.catalog.count()
        assert archive.found, "readers find it, too"
    (built.root / "aside").rename(pack)
    assert built.images() == images and built.scrubbed() == []


# Interrupted runs


@pytest.mark.parametrize("harm", ["rot", "lost"])
def test_what_a_partial_session_lists_is_checked_when_it_is_resumed(built: Site, harm: str) -> None:
    write(built, 9, 0, CHUNKS)
    cut_off_after(built, 12)
    with built.open() as archive:
        (partial,) = archive.partials()
        ids = {raw[at : at + 32] for raw in partial.ids() for at in range(0, len(raw), 32)}
        partial.close()
        place = min(archive.catalog.places(ids).values())
    pack = built.archive / place.pack
    if harm == "lost":
        pack.unlink()
    else:
        with open(pack, "r+b") as file:
            file.seek(place.offset + 40)
            file.write(b"rot" * 5)
        assert built.scrubbed()
    assert run(built).done[0].resumed
    built.verify_all()
    assert newest(built) == [built.contents()]


# Session files


def test_a_missing_session_is_found_and_healed_and_nothing_freed_meanwhile(
    built: Site, commands_for: Make
) -> None:
    images, commands = built.images(), commands_for(built)
    victim, kept = session_files(built)[1], built.root / "kept"
    victim.rename(kept)
    before = packs_take(built)
    assert victim.name.partition("-")[2][:32] in commands.run("scrub", expect=4)[1]
    write(built, 7, 0)
    commands.run("backup")  # scrub has said it; this run heals
    assert newest(built) == [built.contents()]
    commands.fails(4, "prune", "work", "--session", next(iter(images)))
    assert packs_take(built) >= before
    kept.rename(victim)
    found = built.images()
    assert {name: found[name] for name in images} == images
    built.verify_all()
    commands.run("prune", "--keep-last", "1")
    assert packs_take(built) < before and built.scrubbed() == []


def test_the_first_to_notice_a_missing_session_is_backup(built: Site, commands_for: Make) -> None:
    session_files(built)[1].unlink()
    commands = commands_for(built)
    error = commands.run("backup", expect=4)[1]
    assert "builds on" in error
    commands.run("backup")
    assert newest(built) == [built.contents()]
    assert commands.run("scrub", expect=4)[1], "what stays spoilt is named until it is pruned"
    commands.run("prune", "--keep-last", "1")
    commands.run("scrub")


def test_a_missing_session_and_a_run_that_died(built: Site) -> None:
    """Chunks without a session are dropped from the catalog then; those of the missing one's successors stay."""
    write(built, 9, 0, CHUNKS)
    cut_off_after(built, 6)
    images, victim, kept = built.images(), session_files(built)[1], built.root / "kept"
    victim.rename(kept)
    run(built)
    kept.rename(victim)
    found = built.images()
    assert {name: found[name] for name in images} == images


def test_damage_to_one_volume_leaves_the_others_alone(tmp_path: Path) -> None:
    site = Site(tmp_path / "site", volumes=("work/private", "other/private"))
    for turn in range(3):
        for at, name in enumerate(site.volumes):
            if turn == 0:
                site.image(name).write_bytes(random.Random(at).randbytes(CHUNKS * GRAIN))
            write(site, 10 * turn + at, turn, name=name)
        site.backup()
    with site.open() as archive:
        keys = site.keys(archive)
        ids = {volume.name: volume.id for volume in stored_volumes(archive, keys, {})}
    damaged = sorted((site.archive / "volumes" / ids["other/private"]).iterdir())[1]
    damaged.write_bytes(b"not a session")
    before = packs_take(site)
    with site.open(True) as archive:
        series = archive.sessions(ids["work/private"])[ids["work/private"]]
        done = prune(archive, series[:1])
        assert (
            done.sessions == 1
            and done.space == 0
            and "no space is given back" in str(archive.warnings)
        )
        theirs = archive.sessions(ids["other/private"])[ids["other/private"]]
        with pytest.raises(DamagedError, match="left as it is"):
            prune(archive, theirs[:1])
    assert packs_take(site) == before
    run(site)
    run(site)
    assert newest(site) == [site.contents(name) for name in site.volumes]
    with site.open(True) as archive:
        doomed = [s for series in archive.sessions().values() for s in series[:-1]]
        assert prune(archive, doomed).space > 0
        assert not archive.damaged and not damaged.exists()
    assert site.scrubbed() == []


# The catalog


def test_an_old_catalog_beside_newer_files_is_not_believed(built: Site) -> None:
    """As when the folder is copied while a prune goes on: the holes cannot be seen from names and sizes."""
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


# Files of other programs


def test_what_has_not_exactly_our_names_is_ignored(built: Site, commands_for: Make) -> None:
    images, commands = built.images(), commands_for(built)
    session, pack = session_files(built)[1], next(built.archive.rglob("*.pack"))
    foreign = [
        session.with_name(f"{session.stem} (conflicted copy 2026-11-01).session"),
        session.with_name(f"{session.stem}.sync-conflict-20261101-120000-ABCDEFG.session"),
        session.with_name("._" + session.name),
        session.with_name(session.name.upper()),
        session.with_name("0" + session.name),
        pack.with_name(f"{pack.stem} (1).pack"),
        pack.parent.with_name("zz") / pack.name,
        pack.with_name("00" + pack.name[2:] if pack.name[:2] != "00" else "01" + pack.name[2:]),
    ]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        shutil.copy(session if path.suffix == ".session" else pack, path)
    assert built.images() == images
    error = commands.run("scrub")[1]
    assert all(path.name in error for path in foreign)
    commands.run("verify", "--passphrase-file", str(commands.passphrase))
    commands.run("prune", "--keep-last", "2")
    assert not run(built).done[0].full
    assert all(path.exists() for path in foreign)
