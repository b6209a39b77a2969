# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that do a part of what they were asked for, or were given what contradicts itself: what
they say of it is true.
"""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from backup_vm.cli import spbk_assemble
from backup_vm.config import load as load_settings
from tests.commands import Commands
from tests.kit import GRAIN, Site, fill

Made = Callable[[Site], Commands]


def test_what_is_given_and_not_used_is_an_error(commands: Commands) -> None:
    fill(commands.site.image(), GRAIN)
    commands.site.backup()
    file = commands.site.root / "keys"
    assert "leave out -o" in commands.fails(2, "keys", "--refresh", "-o", str(file))
    assert not file.exists()
    for rule in ("--min-age=30d", "--max-removed=1%"):
        assert "give one of the two" in commands.fails(
            2, "prune", "work", "--session", "latest", rule, "--yes"
        )
    new = str(commands.site.root / "new")
    at = ("--as-of", "2026-11-20T08:30")
    assert "--as-of" in commands.fails(2, "init", new, "--label", "tests", *at)
    assert "--as-of" in commands.fails(2, "upkeep", new, *at)
    assert not Path(new).exists() and len(commands.names()) == 1
    key = ("--passphrase-file", str(commands.passphrase))
    assert "for --verify" in commands.fails(2, "backup", *key)
    commands.run("backup", "--verify", *key)
    inside = commands.site.archive / "copy"
    assert "in the archive itself" in commands.fails(1, "copy", str(inside))
    assert not inside.exists()
    noted = commands.site.archive / "notes.json"
    before = noted.read_bytes()
    for place in (commands.site.archive, f"{inside.parent}/../{inside.parent.name}"):
        assert "is the archive itself" in commands.fails(1, "copy", str(place))
    assert noted.read_bytes() == before, "no copy is known there"


def test_a_copy_is_apart_from_its_archive_by_whatever_path(commands: Commands) -> None:
    commands.site.backup()
    archive, link = commands.site.archive, commands.site.root / "link"
    link.symlink_to(archive)
    bound = commands.site.root / "bound"
    bound.mkdir()
    places = [archive, link, archive / "../archive"]
    if os.geteuid() == 0:
        subprocess.run(["mount", "--bind", archive, bound], check=True)
        places.append(bound)
    try:
        before = sorted(archive.rglob("*"))
        for place in places:
            assert "is the archive itself" in commands.fails(1, "copy", str(place))
            inside = str(place / "packs/copy")
            assert "in the archive itself" in commands.fails(1, "copy", inside)
        assert sorted(archive.rglob("*")) == before
    finally:
        if len(places) > 3:
            subprocess.run(["umount", bound], check=True)
    commands.run("copy", str(commands.site.root / "copy"))


def test_no_archive_is_made_within_another(commands: Commands) -> None:
    archive, root = commands.site.archive, commands.site.root
    before = sorted(archive.rglob("*"))
    for place in (archive / "other", archive / "packs/a/b"):
        error = commands.fails(1, "init", str(place), "--label", "tests")
        assert f"is in the archive {archive} (tests)" in error
    assert sorted(archive.rglob("*")) == before
    (root / "archive.toml").write_text("# of somebody else\n")
    commands.run("init", str(root / "other"), "--label", "tests")


def test_nothing_is_written_into_an_archive(commands: Commands) -> None:
    fill(commands.site.image(), 4 * GRAIN)
    commands.site.backup()
    archive, root = commands.site.archive, commands.site.root
    key = ("--passphrase-file", str(commands.passphrase))
    writing = {
        "assemble": ("assemble", "work", *key, "--force", "-o"),
        "onto": ("assemble", "work", *key, "--yes", "--onto"),
        "sealed": ("export", "work", "--force", "-o"),
        "raw": ("export", "work", "--format", "raw", *key, "--force", "-o"),
        "tar": ("export", "work", "--format", "tar", *key, "--force", "-o"),
        "keys": ("keys", "-o"),
        "records": ("records", "work", "-o"),
        "report": ("report", *key, "-o"),
        "metrics": ("status", "--metrics"),
    }
    link = root / "link"
    link.symlink_to(archive)
    files = {path for path in archive.rglob("*") if path.is_file()}
    there = [path for path in files if path.suffix in (".toml", ".session", ".pack")]
    before = {path: path.read_bytes() for path in there}
    for what, words in writing.items():
        own = [] if what in ("keys", "records", "report", "metrics") else there
        new = [] if what == "onto" else [archive / "new.prom", link / "packs/new.prom"]
        for target in [*own, *new]:
            error = commands.fails(1, *words, str(target))
            assert f"is in the archive {archive} (tests)" in error
    assert {path for path in archive.rglob("*") if path.is_file()} == files
    assert {path: path.read_bytes() for path in before} == before
    (root / "archive.toml").write_text("# of somebody else\n")
    commands.run("keys", "-o", str(root / "new"))


def test_settings_name_any_place_that_can_be_printed(commands: Commands) -> None:
    folder = commands.site.root / 'a "disk" \\ \N{FLOPPY DISK} \u00e9'
    settings = commands.site.root / "config.toml"
    settings.unlink()
    commands.run("init", str(folder / "copy"), "--label", "tests", "--default")
    assert load_settings(settings).texts["archive"] == str(folder / "copy")


def test_what_was_restored_before_one_failed_is_said(commands_for: Made, tmp_path: Path) -> None:
    site = Site(tmp_path / "site", volumes=("work/private", "work/root"))
    commands = commands_for(site)
    for name in site.volumes:
        fill(site.image(name), 4 * GRAIN)
    site.backup()
    before = site.contents()
    site.image().write_bytes(b"")
    site.image("work/root").unlink()
    site.image("work/root").mkdir()
    out, err = commands.run("restore", "work", "--yes", "--json", expect=None)
    (restored,) = json.loads(out)["restored"]
    assert restored["volume"] == "private" and site.contents() == before
    assert err.startswith("sparsebak: ") and err.count("\n") == 1


def test_a_backup_that_cannot_be_tagged_is_a_backup(commands: Commands) -> None:
    fill(commands.site.image(), GRAIN)
    notes = commands.site.archive / "notes.json"
    notes.write_text("no notes")
    out, err = commands.run("backup", "--tag", "keep", "--json", expect=4)
    assert len(json.loads(out)["sessions"]) == 1
    assert "got neither tag nor note" in err and notes.read_text() == "no notes"


def test_an_archive_is_repaired_beside_damage(commands: Commands) -> None:
    site = commands.site
    for seed in range(2):
        fill(site.image(), 4 * GRAIN, seed)
        site.backup()
    first, *others = sorted(site.archive.rglob("*.pack"))
    assert others
    first.write_bytes(b"")
    (site.archive / "packs" / "00").mkdir(exist_ok=True)
    (site.archive / "packs" / "00" / "00 (1).pack").write_bytes(b"")
    (site.archive / "archive.toml").unlink()
    commands.run("init", str(site.archive), "--label", "tests", "--repair")
    assert len(commands.names()) == 2


def test_an_image_with_other_names_or_in_use_is_not_replaced(commands: Commands) -> None:
    fill(commands.site.image(), 4 * GRAIN)
    commands.site.backup()
    image, other = commands.site.root / "image", commands.site.root / "other"
    image.write_bytes(b"old")
    other.hardlink_to(image)
    key = ("--passphrase-file", str(commands.passphrase))
    onto = ("assemble", "work", "--onto", str(image), "--yes", *key)
    over = ("assemble", "work", "-o", str(image), "--force", *key)
    assert "other names" in commands.fails(1, *onto)
    assert "other names" in commands.fails(1, *over)
    other.unlink()
    with open(image, "r+b"):  # what it writes from now on would be lost
        assert "is in use" in commands.fails(1, *onto)
        assert "is in use" in commands.fails(1, *over)
    assert image.read_bytes() == b"old"
    commands.run(*onto)
    commands.run(*over)
    assert image.read_bytes() == commands.site.contents()
    for force in ((), ("--force",)):
        words = ("assemble", "work", "-o", str(commands.site.root), *force, *key)
        assert "is not a regular file" in commands.fails(1, *words)


def test_the_old_command_takes_any_name(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(commands.site.image(), 4 * GRAIN)
    commands.site.backup()
    monkeypatch.chdir(commands.site.root)
    key = ["--passphrase-file", str(commands.passphrase)]
    assert spbk_assemble.main(["archive", *key, "-o", "./-", "--session=-x"]) == 1
    assert "no session -x" in capsys.readouterr().err
    assert spbk_assemble.main(["archive", *key, "-o", "./-"]) == 0
    assert Path("-").read_bytes() == commands.site.contents()
    assert spbk_assemble.main(["x" * 300, *key]) == 1
    assert capsys.readouterr().err.count("\n") == 1
