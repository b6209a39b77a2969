# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak inspect``: every file of an archive is shown field by field, and what is damaged is
named.
"""

import json
import os
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backup_vm.archive.format import ExportedFile, PackFile, SessionFile, SessionHead
from tests.commands import Commands
from tests.kit import GRAIN, Site, change, fill
from tests.mutation import forms
from wire.records import RECORD_SIZE, Clear, open_record


@pytest.fixture
def commands(site: Site, commands_for: Callable[[Site], Commands]) -> Commands:
    """An archive with two sessions, a tag, and an exported one."""
    fill(site.image(), 9 * GRAIN)
    site.backup()
    change(site.image(), random.Random(1))
    site.backup()
    found = commands_for(site)
    found.settings(f'archive = "{site.archive}"\n')
    key = ("--passphrase-file", str(found.passphrase))
    found.run("tag", "work/private", "--add", "kept", *key)
    found.run("export", "work/private", "-o", str(site.root / "one.sbx"), *key)
    return found


def shown(commands: Commands, file: Path | str, *words: str, expect: int = 0) -> dict[str, Any]:
    """Values by the names of fields."""
    found = commands.json("inspect", str(file), *words, expect=expect)
    assert found["ok"] == (expect == 0)
    return {field["name"]: field["value"] for field in found["fields"]}


def sessions(site: Site) -> list[Path]:
    return sorted(site.archive.glob("volumes/*/*.session"))


def test_every_file_of_an_archive_is_shown(site: Site, commands: Commands) -> None:
    for path in [p for p in site.archive.rglob("*") if p.is_file()] + [site.root / "one.sbx"]:
        found = commands.json("inspect", str(path))
        assert found["file"] == str(path) and found["size"] == path.stat().st_size
        assert found["ok"] and found["ends"] is None
        placed = [field for field in found["fields"] if field["offset"] is not None]
        assert not placed or sum(field["size"] for field in placed) == path.stat().st_size
        text, error = commands.run("inspect", str(path), "--all")
        assert found["kind"] in text.splitlines()[0] and not error


def test_what_is_shown_is_what_is_there(site: Site, commands: Commands) -> None:
    first, second = sessions(site)
    raw = second.read_bytes()
    clear = Clear.parse(raw[SessionHead.length() :][: Clear.length()])
    found = shown(commands, second)
    assert found["head.base"] == sessions(site)[0].name[11:43]
    assert found["record.clear.size"] == clear.size == site.image().stat().st_size
    assert found["record.clear.session"] == clear.session.hex()
    assert found["digest"] == raw[-32:].hex()
    assert not [name for name in found if name.startswith("record.seal.text.")]
    assert shown(commands, site.archive / "archive.toml")["label"] == "tests"
    assert shown(commands, site.archive / "notes.json")[f"sessions.{clear.session.hex()}.tags[0]"]
    catalog = shown(commands, site.archive / "catalog.sqlite")
    assert catalog["packs"] == len(list(site.archive.glob("packs/*/*.pack")))
    every = shown(commands, first, "--all")
    assert f"ids[{every['head.count'] - 1}]" in every and "ids[1]" in every


@pytest.mark.parametrize("exported", [False, True])
def test_with_the_key_what_is_sealed_is_shown(
    site: Site, commands: Commands, exported: bool
) -> None:
    path = site.root / "one.sbx" if exported else sessions(site)[-1]
    found = shown(commands, path, "--passphrase-file", str(commands.passphrase))
    raw = path.read_bytes()
    at = raw.index(b"SBRC")
    with site.open() as archive:
        record = open_record(raw[at : at + RECORD_SIZE], site.keys(archive))
    assert found["record.seal.text.qube"] == "work"
    assert found["record.seal.text.volume"] == "private"
    assert found["record.seal.text.root"] == record.root.hex()
    wrong = site.root / "wrong"
    wrong.write_text("another\n")
    text = commands.run("inspect", str(path), "--json", "--passphrase-file", str(wrong), expect=12)
    assert json.loads(text[0])["ok"] is False


def test_of_an_open_archive_no_passphrase_is_needed_and_no_key_is_shown(
    tmp_path: Path, commands_for: Callable[[Site], Commands]
) -> None:
    site = Site(tmp_path / "open", sealed=False)
    fill(site.image(), 3 * GRAIN)
    site.backup()
    commands = commands_for(site)
    assert shown(commands, sessions(site)[0])["record.seal.text.qube"] == "work"
    with site.open() as archive:
        key = archive.parameters.master
    assert key is not None
    assert key.hex() not in commands.run("inspect", str(site.archive / "archive.toml"), "--all")[0]


def test_a_name_within_the_archive_does(site: Site, commands: Commands) -> None:
    name = str(sessions(site)[0].relative_to(site.archive))
    assert shown(commands, name)["head.inherit"] == 0
    assert "there is no such file" in commands.fails(2, "inspect", "packs/nothing")


def test_damage_is_named_where_it_is(site: Site, commands: Commands) -> None:
    path = sessions(site)[-1]
    raw = path.read_bytes()
    for changed, words in (
        (raw[:100], "left"),
        (raw + b"x", "belong to nothing"),
        (b"SBXXXX" + raw[6:], 'head.magic must be "SBSESS" 00 02'),
        (raw[:-40] + b"x" + raw[-39:], "digest is not that of what it covers"),
        (raw[:16] + b"\xff" * 8 + raw[24:], "the file ends after"),
    ):
        path.write_bytes(changed)
        assert words in commands.fails(4, "inspect", str(path))
        assert shown(commands, path, expect=4)["head.base"] == raw[24:40].hex()


def test_every_change_of_a_file_is_shown_or_named(site: Site, commands: Commands) -> None:
    """No traceback, no hang; what a checksum covers is never called sound when it is not."""
    pack = next(site.archive.glob("packs/*/*.pack"))
    rng = random.Random(3)
    for path, structure in (
        (sessions(site)[-1], SessionFile),
        (pack, PackFile),
        (site.root / "one.sbx", ExportedFile),
    ):
        raw = path.read_bytes()
        fields = forms.fields_of(structure, raw)
        changes = [*forms.in_fields(raw, fields, None), *forms.in_length(raw, fields, None)]
        for change_ in rng.sample(changes, 25):
            path.write_bytes(change_.raw)
            out, err = commands.run("inspect", str(path), "--all", "--json", expect=None)
            assert "Traceback" not in err
            # the head of a chunk that is between the two others is its index's, too
            assert json.loads(out)["ok"] is False or structure is PackFile, change_.name
        path.write_bytes(raw)


def test_a_hole_is_no_damage(site: Site, commands: Commands) -> None:
    pack = next(site.archive.glob("packs/*/*.pack"))
    field = {f["name"]: f for f in commands.json("inspect", str(pack))["fields"]}
    with open(pack, "r+b") as file:
        file.seek(field["chunks[0].sealed.method"]["offset"])
        file.write(bytes(field["chunks[0].entry.sealed_length"]["value"]))
    out, _ = commands.run("inspect", str(pack))
    assert "a hole" in out
    with open(pack, "r+b") as file:
        file.seek(field["chunks[0].sealed.method"]["offset"])
        file.write(b"\1" * 40)
    assert "chunks[0].entry.checksum" in commands.fails(4, "inspect", str(pack))


def test_a_hostile_catalog_is_not_run(site: Site, commands: Commands) -> None:
    path = site.archive / "catalog.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE spoilt RENAME TO other")
        database.execute("CREATE VIEW spoilt AS SELECT load_extension('x') AS file")
    database.close()
    assert "its schema is not" in commands.fails(4, "inspect", str(path))


def test_what_is_no_file_of_an_archive_is_refused(site: Site, commands: Commands) -> None:
    other = site.root / "other"
    other.write_bytes(b"something else")
    assert "no file of an archive" in commands.fails(1, "inspect", str(other))
    fifo = site.root / "x.session"
    os.mkfifo(fifo)
    assert str(fifo) in commands.fails(4, "inspect", str(fifo))
    for folder in (str(site.pool), "packs", str(site.archive), "/"):
        assert "is a folder (name a file" in commands.fails(2, "inspect", folder)
    assert "no such file" in commands.fails(2, "inspect", str(site.root / "none"))
