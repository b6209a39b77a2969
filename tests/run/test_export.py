# SPDX-License-Identifier: GPL-2.0-or-later
"""Sessions in single files, copies of whole archives: the same images everywhere, whatever is
missing, cut off or damaged.
"""

import hashlib
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from backup_vm.archive.storage.local import LocalStorage
from backup_vm.jobs.copy import copy
from backup_vm.terminal.progress import Progress
from tests.commands import Commands
from tests.exports import drop, images, with_sessions
from tests.kit import GRAIN, Site, fill
from wire.records import RECORD_SIZE


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStorage, "pack_size", 4 * GRAIN)


@pytest.fixture
def built(site: Site) -> Site:
    return with_sessions(site)


@pytest.mark.parametrize("which", [0, 1, 3])
def test_a_session_goes_out_and_comes_back(
    built: Site, commands_for: Callable[[Site], Commands], which: int
) -> None:
    commands, before = commands_for(built), built.images()
    name, file = list(before)[which], built.root / "one.sbx"
    data = commands.keyed("export", "work/private", "--session", name, "-o", str(file))
    assert data["size"] == file.stat().st_size and data["format"] == "sealed"
    raw = file.read_bytes()
    assert b"work" not in raw and b"private" not in raw
    assert "already" in commands.fails(1, "import", str(file))
    assert "exists" in commands.fails(1, "export", "work/private", "-o", str(file))
    drop(built, built.archive, which)
    assert built.images() == {key: image for key, image in before.items() if key != name}
    commands.json("import", str(file))
    assert built.images() == before and built.scrubbed() == []
    built.backup()
    assert list(built.images().values())[-1] == built.contents()


def test_an_archive_that_lost_all_its_sessions_gets_one_back(
    built: Site, commands_for: Callable[[Site], Commands]
) -> None:
    commands, before = commands_for(built), built.images()
    name = list(before)[2]
    commands.keyed("export", "work/private", "--session", name, "-o", str(built.root / "one"))
    drop(built, built.archive, 0, 1, 2, 3)
    commands.run("import", str(built.root / "one"))
    assert built.images() == {name: before[name]}


@pytest.mark.parametrize("harm", ["pack", "body", "head"])
def test_an_export_heals_the_session_it_was_made_of(
    built: Site, commands_for: Callable[[Site], Commands], harm: str
) -> None:
    commands, before = commands_for(built), built.images()
    name, file = list(before)[-1], built.root / "one.sbx"
    commands.keyed("export", "work/private", "--session", name, "-o", str(file))
    assert "already" in commands.fails(1, "import", str(file))
    if harm == "pack":
        max(built.archive.rglob("*.pack"), key=lambda path: path.stat().st_mtime_ns).unlink()
    else:
        victim = sorted(built.archive.rglob("*.session"))[-1]
        raw = bytearray(victim.read_bytes())
        raw[-1 if harm == "body" else 0] ^= 1
        victim.write_bytes(raw)
    commands.run("scrub", expect=4)
    commands.keyed("import", str(file))
    with built.open() as archive:
        (series,) = archive.sessions().values()
        assert series[-1].file not in archive.catalog.spoilt()
    assert built.images() == before


def test_files_that_are_damaged_or_none_change_nothing(
    built: Site, commands_for: Callable[[Site], Commands]
) -> None:
    commands, file = commands_for(built), built.root / "one"
    commands.keyed("export", "work/private", "--session", list(built.images())[1], "-o", str(file))
    drop(built, built.archive, 1)
    before, raw = built.images(), file.read_bytes()
    for at in (3, 30, 2000, len(raw) // 2, len(raw) - 40, len(raw) - 1):
        wrong = bytearray(raw)
        wrong[at] ^= 1
        file.write_bytes(wrong)
        assert commands.run("import", str(file), expect=4 if at > 20 else 1)[1].count("\n") == 1
    for wrong_raw in (raw[:-1], raw[: len(raw) // 2], raw + b"x"):
        file.write_bytes(wrong_raw)
        assert "one" in commands.fails(4, "import", str(file))
    for wrong_raw in (b"", b"not an export" * 100, raw[:100]):
        file.write_bytes(wrong_raw)
        assert "not an exported session" in commands.fails(1, "import", str(file))
    for number, what in ((1, "from before the first release"), (3, "a newer one")):
        file.write_bytes(raw[:7] + bytes([number]) + raw[8:])
        told = commands.fails(1, "import", str(file))
        assert f"an exported session of format {number}" in told and what in told
    assert built.images() == before
    other = built.root / "other"
    built.add_archive("other", other)
    file.write_bytes(raw)
    assert "same key" in commands.fails(1, "--archive", str(other), "import", str(file))
    commands.run("import", str(file))
    assert len(built.images()) == 4 and built.scrubbed() == []
    built.backup()


def test_a_forged_chunk_is_noticed_with_the_key(
    built: Site, commands_for: Callable[[Site], Commands]
) -> None:
    """A file whose checksum is right, and a chunk in it wrong: whoever can write a file can write a
    checksum.
    """
    commands, file = commands_for(built), built.root / "one"
    commands.keyed("export", "work/private", "--session", list(built.images())[1], "-o", str(file))
    drop(built, built.archive, 1)
    raw = bytearray(file.read_bytes())[:-32]
    raw[-100] ^= 1
    file.write_bytes(raw + hashlib.blake2b(raw, digest_size=32).digest())
    before = {path: path.read_bytes() for path in built.archive.rglob("*.pack")}
    assert "not authentic" in commands.fails(
        4, "import", str(file), "--passphrase-file", str(commands.passphrase)
    )
    assert {path: path.read_bytes() for path in built.archive.rglob("*.pack")} == before


def test_chunks_in_other_places_are_noticed_with_the_key(
    built: Site, commands_for: Callable[[Site], Commands]
) -> None:
    """Each chunk is authentic, and the image is not the one of the record."""
    commands, file = commands_for(built), built.root / "one"
    commands.keyed("export", "work/private", "--session", list(built.images())[1], "-o", str(file))
    drop(built, built.archive, 1)
    raw = bytearray(file.read_bytes())[:-32]
    with built.open() as archive:
        first = 8 + 16 + 4 + len((archive.storage.local("archive.toml")).read_bytes()) + RECORD_SIZE
    size = int.from_bytes(raw[first - RECORD_SIZE + 72 :][:8], "little")
    data = first + 32 * -(-size // GRAIN)
    number = next(n for n in range(99) if any(raw[first + 32 * n :][:32]))
    raw[first + 32 * number : first + 32 * number + 32] = bytes(32)  # a chunk becomes zeros
    del raw[data : data + 4 + int.from_bytes(raw[data : data + 4], "little")]
    file.write_bytes(raw + hashlib.blake2b(raw, digest_size=32).digest())
    assert "not authentic" in commands.fails(
        4, "import", str(file), "--passphrase-file", str(commands.passphrase)
    )


def test_the_key_of_an_open_archive_does_not_go_along(
    tmp_path: Path, commands_for: Callable[[Site], Commands]
) -> None:
    site = Site(tmp_path / "site", sealed=False)
    fill(site.image(), 5 * GRAIN)
    site.backup()
    commands, file = commands_for(site), site.root / "one"
    commands.run("export", "work/private", "-o", str(file))
    with site.open() as archive:
        master = archive.parameters.master
    assert (
        master is not None
        and master.hex().encode() not in file.read_bytes()
        and master not in file.read_bytes()
    )
    before = site.images()
    drop(site, site.archive, 0)
    commands.run("import", str(file))
    assert site.images() == before


def test_raw_and_tar(built: Site, commands_for: Callable[[Site], Commands]) -> None:
    commands = commands_for(built)
    for name, image in built.images().items():
        words = ["export", "work/private", "--session", name, "--force", "-o"]
        commands.keyed(*words, str(built.root / "raw"), "--format", "raw")
        assert (built.root / "raw").read_bytes() == image
        commands.keyed(*words, str(built.root / "tar"), "--format", "tar")
        with tarfile.open(built.root / "tar") as archive:
            (member,) = archive.getmembers()
            file = archive.extractfile(member)
            assert (
                member.name == "work-private.img" and member.size == len(image) and file is not None
            )
            assert file.read() == image
        shutil.rmtree(built.root / "out", ignore_errors=True)
        (built.root / "out").mkdir()
        subprocess.run(["tar", "-xf", built.root / "tar", "-C", built.root / "out"], check=True)
        extracted = built.root / "out/work-private.img"
        assert extracted.read_bytes() == image
    assert "sealed" in commands.fails(12, *words, str(built.root / "tar"), "--format", "tar")


def test_an_export_replaces_nothing_but_a_file_that_it_may(
    built: Site, commands_for: Callable[[Site], Commands]
) -> None:
    commands, name = commands_for(built), list(built.images())[-1]
    words = ["export", "work/private", "--session", name, "--force", "-o"]
    fifo, link, real = (built.root / one for one in ("fifo", "link", "real"))
    other = built.root / "real.part"
    os.mkfifo(fifo)  # as /dev/null is: root could put a file in its place
    link.symlink_to(real)
    other.write_text("somebody's")
    for kind in ("sealed", "raw", "tar"):
        key = ["--passphrase-file", str(commands.passphrase)]
        error = commands.fails(1, *words, str(fifo), "--format", kind, *key)
        assert "not a regular file" in error and fifo.is_fifo()
        commands.keyed(*words, str(link), "--format", kind)
        assert link.is_symlink() and (kind == "sealed" or not real.stat().st_mode & 0o077)
    commands.keyed("assemble", "work/private", "--force", "-o", str(link))
    assert link.is_symlink() and other.read_text() == "somebody's"


def test_a_copy_is_brought_up_to_date(
    built: Site, commands_for: Callable[[Site], Commands]
) -> None:
    commands, target, rng = commands_for(built), built.root / "copy", random.Random(8)
    commands.keyed("tag", "work", "--session", list(built.images())[0], "--add", "gold")
    first = commands.json("copy", str(target))
    assert (
        first["sessions"] == 4 and first["failed"] == [] and images(built, target) == built.images()
    )
    assert commands.json("copy", str(target)) == {**first, "sessions": 0, "stored": 0}
    names = list(built.images())
    for turn in range(3):
        built.disturb(rng)
        built.backup()
        drop(built, built.archive, turn % 2 + 1)
        done = commands.json("copy", str(target))
        assert done["stored"] < 2_000_000 and done["sessions"] >= 1
        assert images(built, target).items() >= built.images().items(), "it may hold more"
    assert set(names) <= set(images(built, target))
    assert commands.json("copy", str(target), "--delete", "--yes")["removed"] == 3
    assert images(built, target) == built.images()
    with built.open(folder=target) as archive:
        assert "gold" in str(commands.keyed("--archive", str(target), "list"))
        assert archive.storage.names("volumes", ".partial") == []
    assert commands.json("--archive", str(target), "scrub")["ok"]
    built.backup(folder=target)
    assert list(images(built, target).values())[-1] == built.contents()


def test_two_copies_that_went_on_each_for_itself(built: Site) -> None:
    """Sessions that only one of two copies has do not get into the images of the other's."""
    target, rng, contents = built.root / "copy", random.Random(2), built.images()
    with built.open() as archive:
        copy(archive, str(target), Progress())
    for folder in (target, built.archive, target, built.archive, built.archive):
        built.disturb(rng)
        built.backup(folder=folder)
        contents |= {list(images(built, folder))[-1]: built.contents()}
    for source, there in ((built.archive, target), (target, built.archive)):
        with built.open(folder=source) as archive:
            assert copy(archive, str(there), Progress()).failed == []
        found = images(built, there)
        assert found == {name: contents[name] for name in found}
    assert images(built, target) == images(built, built.archive) == contents


def test_damage_in_the_source_is_not_copied(
    built: Site, commands_for: Callable[[Site], Commands]
) -> None:
    commands, target = commands_for(built), built.root / "copy"
    before = built.images()
    pack = sorted(built.archive.rglob("*.pack"), key=lambda path: path.stat().st_mtime)[-1]
    raw = bytearray(pack.read_bytes())
    raw[300] ^= 1
    pack.write_bytes(raw)
    done = commands.run("copy", str(target), "--json", expect=4)
    assert "is damaged at byte" in done[1]
    with built.open(folder=target) as archive:
        assert 1 <= sum(len(series) for series in archive.sessions().values()) < 4
    found = images(built, target)
    assert found and all(before[name] == image for name, image in found.items())
