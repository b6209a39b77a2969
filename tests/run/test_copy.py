# SPDX-License-Identifier: GPL-2.0-or-later
"""Copies of an archive that is not all well: what can be read is copied, whole; the rest is named,
and nothing else is lost.
"""

import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from backup_vm.archive import sessions
from backup_vm.archive.catalog import ChunkCatalog
from backup_vm.archive.prune import prune
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.jobs.copy import copy
from backup_vm.terminal.progress import Progress
from tests.commands import Commands
from tests.kit import GRAIN, Site, change, fill
from tests.mutation.forms import seal_pack, seal_session
from tests.steps import deaths


@pytest.fixture
def built(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Four sessions; the second changes chunks 3 and 5, the third 3 again, the fourth 7."""
    monkeypatch.setattr(LocalStorage, "pack_size", 4 * GRAIN)
    fill(site.image(), 16 * GRAIN)
    rng = random.Random(5)
    for numbers in ((3, 5), (3,), (7,), ()):
        site.backup()
        for number in numbers:
            with open(site.image(), "r+b") as file:
                file.seek(number * GRAIN)
                file.write(rng.randbytes(GRAIN))
    return site


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.session"))


def spoil_chunk(site: Site, session: int, number: int) -> None:
    with site.open() as archive:
        (series,) = archive.sessions().values()
        for numbers, ids in sessions.columns(archive.storage, series[session]).slices():
            chunk_id = ids[numbers.tolist().index(number)].tobytes()
        place = archive.catalog.places([chunk_id])[chunk_id]
    with open(site.archive / place.pack, "r+b") as file:
        file.seek(place.offset + 99)
        byte = file.read(1)[0]
        file.seek(place.offset + 99)
        file.write(bytes([byte ^ 4]))


def forge_chunk(site: Site, session: int, number: int) -> None:
    """Spoil a chunk, and make every checksum right again, as whoever can write to the disk can."""
    before = {path: path.read_bytes() for path in site.archive.rglob("*.pack")}
    spoil_chunk(site, session, number)
    for path, raw in before.items():
        if path.read_bytes() != raw:
            path.write_bytes(seal_pack(path.read_bytes()))


def lose(site: Site, session: int, folder: bool = False) -> None:
    path = files(site.archive)[session]
    path.unlink()
    if folder:
        path.mkdir()


HARMS: dict[str, tuple[Callable[[Site], None], list[int]]] = {
    "a chunk that only the second session has": (lambda s: spoil_chunk(s, 1, 3), [1]),
    "a chunk of the second session that stays": (lambda s: spoil_chunk(s, 1, 5), [1, 2, 3]),
    "a chunk of the first session": (lambda s: spoil_chunk(s, 0, 9), [0, 1, 2, 3]),
    "the first session's file is lost": (lambda s: lose(s, 0), [0, 1, 2, 3]),
    "the third session's file is a folder": (lambda s: lose(s, 2, folder=True), [2, 3]),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_cannot_be_read_is_named_and_all_others_are_copied(
    built: Site, commands_for: Callable[[Site], Commands], harm: str
) -> None:
    commands, target = commands_for(built), built.root / "copy"
    before = built.images()
    action, spoilt = HARMS[harm]
    action(built)
    whole = {name: image for at, (name, image) in enumerate(before.items()) if at not in spoilt}
    for _ in range(2):
        data = commands.json("copy", str(target), expect=4)
        said = " ".join(data["failed"])
        lost = [name for at, name in enumerate(before) if at in spoilt]
        assert sum(name in said for name in lost) >= max(len(lost) - 1, 1)
        assert built.images(folder=target) == whole
        assert commands.json("--archive", str(target), "scrub")["ok"]
    built.backup(folder=target)
    assert list(built.images(folder=target).values())[-1] == built.contents()
    assert commands.json("--archive", str(target), "scrub")["ok"]


@pytest.mark.parametrize("harm", HARMS)
def test_what_was_copied_before_stays(
    built: Site, commands_for: Callable[[Site], Commands], harm: str
) -> None:
    commands, target = commands_for(built), built.root / "copy"
    before = built.images()
    assert commands.json("copy", str(target))["sessions"] == 4
    HARMS[harm][0](built)
    session = files(built.archive)[-1].name
    code = 4 if "file" in harm else 0
    words = ("copy", str(target), "--delete", "--yes")
    assert commands.json(*words, expect=code)["removed"] == 0
    assert built.images(folder=target) == before
    assert session in {path.name for path in files(target)}


def test_a_copy_that_lost_something_gets_it_again(
    built: Site, commands_for: Callable[[Site], Commands]
) -> None:
    commands, target = commands_for(built), built.root / "copy"
    before = built.images()
    commands.run("copy", str(target))
    files(target)[0].unlink()
    files(target)[2].write_bytes(files(target)[2].read_bytes()[:-1] + b"x")
    packs = sorted(target.rglob("*.pack"))
    packs[1].unlink()
    commands.json("copy", str(target))
    assert built.images(folder=target) == before
    assert commands.json("--archive", str(target), "scrub")["ok"]


def test_none_is_made_where_one_was(built: Site, commands_for: Callable[[Site], Commands]) -> None:
    """The disk of the copy is not mounted: what is written there fills the wrong one."""
    commands, target = commands_for(built), built.root / "mount/copy"
    commands.run("copy", str(target))
    shutil.rmtree(target.parent)
    target.parent.mkdir()
    for name in (target, target.parent / "../mount/copy"):
        assert "mount its disk" in commands.fails(10, "copy", str(name))
        assert not list(target.parent.iterdir())
    commands.run("copy", str(target), "--init")
    assert built.images(folder=target) == built.images()


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "open"])
def test_with_the_key_no_forged_chunk_leaves_the_archive(
    tmp_path: Path, commands_for: Callable[[Site], Commands], sealed: bool
) -> None:
    """Its checksums are right, so that without the key nobody can know."""
    site = Site(tmp_path / "site", sealed=sealed)
    commands = commands_for(site)
    fill(site.image(), 40 * GRAIN)
    site.backup()
    first = site.contents()
    with open(site.image(), "r+b") as file:
        file.seek(3 * GRAIN)
        file.write(random.Random(7).randbytes(4 * GRAIN))
    site.backup()
    forge_chunk(site, 1, 4)
    assert site.scrubbed() == []
    names = [path.name[11:] for path in files(site.archive)]
    key = ["--passphrase-file", str(commands.passphrase)] if sealed else []
    file, target = site.root / "one", site.root / "copy"
    error = commands.fails(4, "export", "work/private", "-o", str(file), *key)
    assert "chunk 4" in error and not file.exists()
    assert list(site.root.glob("*one*")) == []
    error = commands.run("copy", str(target), *key, expect=4)[1]
    assert "chunk 4" in error
    assert len(files(target)) == 1 and names[0] in files(target)[0].name
    assert list(site.images(folder=target).values()) == [first]
    if not sealed:
        return
    commands.run("export", "work/private", "-o", str(file))
    commands.run("copy", str(target))
    assert len(files(target)) == 2
    commands.run("--archive", str(target), "delete", "work/private", "--yes", *key)
    assert "chunk 4" in commands.fails(4, "--archive", str(target), "import", str(file), *key)
    assert files(target) == [] and list(target.rglob("*.pack")) == []
    commands.run("--archive", str(target), "import", str(file))
    commands.run("--archive", str(target), "verify", "--session", "all", *key, expect=4)


def test_with_the_key_a_copy_is_what_one_without_is(
    built: Site, commands_for: Callable[[Site], Commands]
) -> None:
    commands, key = commands_for(built), ["--passphrase-file", str(built.root / "pw")]
    done = commands.json("copy", str(built.root / "with"), *key)
    assert done["sessions"] == 4
    without = commands.json("copy", str(built.root / "without"))
    assert {**done, "target": ""} == {**without, "target": ""}
    assert built.images(folder=built.root / "with") == built.images()


def test_a_session_that_another_key_sealed_is_not_copied(
    built: Site, commands_for: Callable[[Site], Commands]
) -> None:
    """Its file is sound, and its record, or what it says of its chunks, is not."""
    commands, key = commands_for(built), ["--passphrase-file", str(built.root / "pw")]
    before = built.images()
    last = files(built.archive)[-1]
    raw = bytearray(last.read_bytes())
    raw[40 + 200] ^= 1  # within the sealed part of the record
    last.write_bytes(seal_session(bytes(raw)))
    target = built.root / "copy"
    error = commands.run("copy", str(target), *key, expect=4)[1]
    assert last.name in error
    assert list(built.images(folder=target)) == list(before)[:-1]


def test_a_copy_does_not_turn_open(built: Site, commands_for: Callable[[Site], Commands]) -> None:
    commands, target = commands_for(built), built.root / "copy"
    commands.run("copy", str(target))
    with built.open() as archive:
        text = (built.archive / "archive.toml").read_text()
        forged = archive.parameters._replace(master=bytes(32))
        forged.save(archive.storage)
    assert text != (built.archive / "archive.toml").read_text()
    assert "open" in commands.fails(1, "copy", str(target))
    assert (target / "archive.toml").read_text() == text


def test_another_archive_is_not_overwritten(
    built: Site, commands_for: Callable[[Site], Commands]
) -> None:
    commands, other = commands_for(built), built.root / "other"
    built.add_archive("other", other)
    assert "another archive" in commands.fails(1, "copy", str(other))
    assert "not empty" in commands.fails(1, "copy", str(built.pool))
    assert "the archive itself" in commands.fails(1, "copy", str(built.archive))


def test_killed_at_every_step_a_copy_goes_on(tmp_path: Path) -> None:
    site, target = Site(tmp_path / "site"), tmp_path / "copy"
    rng = random.Random(1)
    fill(site.image(), 10 * GRAIN)
    for _ in range(2):
        site.backup()
        change(site.image(), rng)
    with site.open() as archive:
        copy(archive, str(target), Progress())
    site.backup()
    with site.open(True) as archive:
        (series,) = archive.sessions().values()
        prune(archive, [series[1]])
    whole = site.images()

    def attempt() -> None:
        with site.open() as archive:
            copy(archive, str(work), Progress())

    work = tmp_path / "work"
    shutil.copytree(target, work)
    for _ in deaths(attempt):
        before = site.images(folder=work)
        assert all(whole.get(name, before[name]) == image for name, image in before.items())
        attempt()
        assert site.images(folder=work).items() >= whole.items()
        with site.open(True, work) as archive:
            assert archive.warnings == [] and archive.storage.names("volumes", ".partial") == []
        shutil.rmtree(work)
        shutil.copytree(target, work)


def test_the_disk_that_is_full_is_named(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The copy's, and not the archive's from which it is made."""
    commands.site.backup()

    def full(*_: object) -> None:
        database = sqlite3.connect(":memory:")
        database.execute("PRAGMA max_page_count=1")
        database.execute("CREATE TABLE t (x)")

    monkeypatch.setattr(ChunkCatalog, "begin", full)
    said = commands.fails(1, "copy", str(tmp_path / "copy"))
    assert f"the disk of the catalog of {tmp_path / 'copy'} is full" in said
