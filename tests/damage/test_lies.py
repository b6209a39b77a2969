# SPDX-License-Identifier: GPL-2.0-or-later
"""What is written where anybody can write who has the disk: a catalog that lies, forged partial
sessions and session files.
"""

import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from backup_vm.archive import pack_writer
from backup_vm.archive.partial import Partial
from backup_vm.archive.storage.local import LocalStorage
from tests.commands import Commands
from tests.kit import GRAIN, Site
from tests.mutation import forms
from tests.mutation.scene import cut_off
from wire.messages import Offer

LIES = {
    "no chunk": "DELETE FROM chunks",
    "another place": "UPDATE chunks SET offset = offset + 100",
    "another length": "UPDATE chunks SET length = 1 << 40",
    "no number": "UPDATE chunks SET length = 1.5",
    "text": "UPDATE chunks SET offset = 'x'",
    "no pack": "UPDATE chunks SET pack = 1 << 40",
    "one pack": "UPDATE chunks SET pack = (SELECT max(number) FROM packs)",
    "ids that nobody has": "UPDATE chunks SET id = randomblob(32)",
    "packs of text": "UPDATE packs SET size = 'x'",
    "files without size": "UPDATE files SET size = x'00'",
    "freed packs that are not": "INSERT INTO freed VALUES (1 << 40, 0, 100), (-1, 24, 1 << 40)",
    "freed text": "INSERT INTO freed VALUES ((SELECT min(number) FROM packs), 'x', x'00')",
}


@pytest.fixture
def site(quick_folder: Path) -> Site:
    return Site(quick_folder / "site")


@pytest.fixture
def built(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(LocalStorage, "pack_size", 3 * GRAIN)
    site.image().write_bytes(os.urandom(8 * GRAIN))
    site.backup()
    return site


@pytest.mark.parametrize("lie", LIES)
def test_a_catalog_that_lies_costs_no_session(
    built: Site, commands_for: Callable[[Site], Commands], lie: str
) -> None:
    with sqlite3.connect(built.archive / "catalog.sqlite") as database:
        database.execute(LIES[lie])
    database.close()
    commands, out = commands_for(built), built.root / "out"
    key = ("--passphrase-file", str(commands.passphrase))
    commands.run("assemble", "work/private", "-o", str(out), *key)
    assert out.read_bytes() == built.contents()
    commands.run("export", "work/private", "-o", str(built.root / "x"), *key)
    commands.run("copy", str(built.root / "copy"))
    commands.run("verify")
    assert list(built.images(folder=built.root / "copy").values()) == [built.contents()]
    listed_wrongly = "chunks" in LIES[lie].partition("SET")[0]  # else it is not even opened
    commands.run("scrub", expect=4 if listed_wrongly else 0)


def test_a_partial_session_with_impossible_chunk_numbers_is_sent_again(
    built: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_writer, "RECORD_SECONDS", 0)
    built.image().write_bytes(os.urandom(8 * GRAIN))
    cut_off(built, "work/private", 7)
    (path,) = built.archive.rglob("*.partial")
    raw, at = path.read_bytes(), Offer.length() + 32
    for number in (1 << 63, 8, 0):
        numbers = number.to_bytes(8, "little") * 2
        path.write_bytes(forms.seal_partial(raw[:at] + numbers + raw[at + 16 :]))
        with built.open() as archive:
            one = Partial.load(archive.storage, str(path.relative_to(built.archive)))
            assert one is not None and one.position == one.count == 0
            one.close()
    built.backup()
    assert list(built.images().values())[-1] == built.contents() and built.scrubbed() == []


def test_what_is_exported_has_proven_right(
    built: Site, commands_for: Callable[[Site], Commands]
) -> None:
    commands = commands_for(built)
    (path,) = built.archive.rglob("*.session")
    raw = path.read_bytes()
    ids = len(raw) - 32 - 32
    path.write_bytes(raw[:ids] + raw[ids - 32 : ids] + raw[ids + 32 :])
    assert "checksum is wrong" in commands.fails(4, "export", "work/private", "-o", "x")
    path.write_bytes(forms.seal_session(path.read_bytes()))
    key = ("--passphrase-file", str(commands.passphrase))
    commands.run("export", "work/private", "-o", str(built.root / "x"), *key, expect=4)
    assert not (built.root / "x").exists()


def test_sessions_of_one_name_are_told_apart_by_their_ids(
    built: Site, commands_for: Callable[[Site], Commands]
) -> None:
    commands = commands_for(built)
    built.disturb(random.Random(1))
    built.backup()
    first, second = sorted(built.archive.rglob("*.session"))
    raw = second.read_bytes()
    at = 40 + 64  # the record's time
    older = first.read_bytes()[at : at + 8]
    second.write_bytes(forms.seal_session(raw[:at] + older + raw[at + 8 :]))
    key = ("--passphrase-file", str(commands.passphrase))
    name, other = commands.names()
    plain, session = name.rpartition("-")[0], first.stem.rpartition("-")[2]
    assert (name, other.rpartition("-")[0]) == (f"{plain}-{session[:8]}", plain)
    out = ("-o", str(built.root / "out"))
    error = commands.fails(1, "assemble", "work/private", "--session", plain, *out, *key)
    assert name in error and other in error
    commands.run("assemble", "work/private", "--session", session, *out, *key)


def test_an_empty_archive_is_pruned_by_rules(commands: Commands) -> None:
    commands.run("prune", "--keep-last", "3")


@pytest.mark.parametrize("value", ["{}", "1979-05-27", "7", "[[]]"])
def test_the_second_reader_says_what_it_cannot_read(built: Site, value: str) -> None:
    path = built.archive / "archive.toml"
    lines = path.read_text().splitlines()
    for key in ("archive", "suite", "slots", "format"):
        changed = [f"{key} = {value}" if line.startswith(f"{key} =") else line for line in lines]
        path.write_text("\n".join(changed) + "\n")
        reader = Path(__file__).parents[2] / "docs/reader.py"
        (built.root / "pw").write_text("x\n")
        done = subprocess.run(
            [sys.executable, reader, built.archive, "list"],
            env={"SPARSEBAK_PASSPHRASE_FILE": str(built.root / "pw")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1 and done.stderr.startswith("reader: "), done.stderr


@pytest.mark.parametrize("column", ["packs.name", "files.name", "meta.value"])
def test_a_value_longer_than_any_is_not_read(built: Site, column: str) -> None:
    """Whoever writes the disk must not have memory filled by it."""
    table, name = column.split(".")
    with closing(sqlite3.connect(built.archive / "catalog.sqlite", isolation_level=None)) as db:
        first = f"(SELECT {name} FROM {table} LIMIT 1)"
        db.execute(
            f"UPDATE {table} SET {name} = printf('%.*c', 2000000, 'x') WHERE {name} = {first}"
        )
    with built.open(True) as archive:
        assert any("was damaged; it has been rebuilt" in one for one in archive.warnings)
    built.verify_all()
