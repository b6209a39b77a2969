# SPDX-License-Identifier: GPL-2.0-or-later
"""An archive on a disk that is mounted read-only: all that reads works, scrub too; what writes says
so in one line.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import full_disk
from tests.commands import Commands
from tests.faultfs import WRITING, Fault, FaultFS
from tests.kit import GRAIN, Site, fill


@pytest.fixture
def disk(small_disk: Path) -> Iterator[Path]:
    yield small_disk
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=False)


def test_checks_that_cannot_be_noted_say_so(
    disk: Path, commands_for: Callable[[Site], Commands], tmp_path: Path
) -> None:
    """They have checked all the same; what was noted before is what is known."""
    site = Site(disk / "site")
    fill(site.image(), 8 * GRAIN)
    commands = commands_for(site)
    site.backup()
    commands.keyed("verify")
    exported = tmp_path / "exported"
    commands.run("export", "work/private", "-o", str(exported))

    def known() -> dict[str, Any]:
        row = commands.keyed("status")
        kept = {name: row[name] for name in ("scrubbed", "part_scrubbed", "drilled", "unproven")}
        return kept | {"verified": row["volumes"][0]["verified"]}

    before = known()
    time.sleep(1)  # or the next verify has nothing to note: it is known of this very second
    key = ("--passphrase-file", str(commands.passphrase))
    checks = (
        ["verify", *key],
        ["verify", "--session", "all", *key],
        ["drill", "--scratch", str(tmp_path), *key],
        ["scrub"],
    )

    def say_so(some: Sequence[list[str]] = checks) -> None:
        for words in some:
            out, said = commands.run(*words, "--json")
            assert json.loads(out)["noted"] is False
            assert said.count("could not be noted") == 1
            assert said.count("\n") == 1 + (words[0] == "drill"), said
        assert known() == before

    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    say_so()
    for words in (["delete", "work/private"], ["prune", "--keep-last", "1"]):
        assert commands.run(*words, "--dry-run", *key)[1] == "", (
            "it only shows, and changes nothing"
        )
    out, said = commands.run("copy", str(tmp_path / "copy"), "--json")
    assert json.loads(out)["noted"] is False and "that there is a copy" in said
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    full_disk.fill(disk)
    say_so(checks[:-1])
    assert commands.fails(1, "import", str(exported)).startswith(f"sparsebak: {site.archive}: No ")
    assert commands.json("scrub")["noted"] is True, "it has room of its own"
    full_disk.empty(disk)
    for words in checks:
        out, said = commands.run(*words, "--json")
        assert json.loads(out)["noted"] is True and "noted" not in said


def test_parity_that_was_asked_for_and_not_made_is_a_failure(
    disk: Path, commands_for: Callable[[Site], Commands], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for by the command, that is: for the settings the check is what it was about."""
    site = Site(disk / "site")
    fill(site.image(), 8 * GRAIN)
    commands = commands_for(site)
    site.backup()
    words = ("scrub", "--parity", "25%")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("backup_vm.jobs.parity.ParityScrub.keep", full)
        assert "parity is not up to date" in commands.run(*words, expect=1)[1]
        commands.settings('parity = "25%"\n')
        assert "parity is not up to date" in commands.run("scrub")[1]
    commands.settings("")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert "no parity can be made" in commands.fails(1, *words)
    commands.run("scrub")
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    commands.run(*words)
    assert list(site.archive.rglob("*.parity"))


def test_a_drill_needs_no_notes(commands: Commands, tmp_path: Path) -> None:
    """Where they are damaged nobody knows whose turn it is, and it is drilled all the same."""
    fill(commands.site.image(), 8 * GRAIN)
    commands.site.backup()
    (commands.site.archive / "notes.json").write_bytes(b"{")
    done = commands.keyed("drill", "--scratch", str(tmp_path))
    assert done["ok"] and not done["noted"]


def test_scrub_reports_damage_without_a_place_to_note_it(
    disk: Path, commands_for: Callable[[Site], Commands]
) -> None:
    site = Site(disk / "site")
    fill(site.image(), 8 * GRAIN)
    commands = commands_for(site)
    site.backup()
    commands.keyed("list")
    before = sorted(site.archive.rglob("*"))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert commands.json("scrub")["ok"]
    for words in (["list"], ["status"], ["verify"], ["diff", "work/private", "latest", "latest"]):
        commands.keyed(*words)
    assert "Read-only" in commands.fails(1, "prune", "--keep-last", "1")
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    pack = next(site.archive.rglob("*.pack"))
    raw = bytearray(pack.read_bytes())
    raw[len(raw) // 2] ^= 1
    pack.write_bytes(raw)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    said = commands.run("scrub", expect=4)[1]
    assert "is damaged at byte" in said and "cannot be written to" in said
    assert sorted(site.archive.rglob("*")) == before
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    commands.run("scrub", expect=4)
    site.backup()
    site.verify_all()


@pytest.mark.parametrize("error", ["EROFS", "EACCES"])
def test_a_place_that_refuses_what_its_permissions_allow(
    faultfs: FaultFS, commands_for: Callable[[Site], Commands], error: str
) -> None:
    """Of a disk that the kernel writes to no more, or a server's folder, access(2) says that it can
    be written to.
    """
    site = Site(faultfs.path / "site")
    fill(site.image(), 8 * GRAIN)
    commands = commands_for(site)
    site.backup()
    before = sorted(site.archive.rglob("*"))
    refused = [Fault(operation, error) for operation in WRITING]
    # The lock file is there and is opened to be written, which the kernel asks of no FUSE.
    for faults in (refused, [*refused, Fault("open", error, path="site/archive/archive.lock")]):
        faultfs.fail(*faults)
        assert os.access(site.archive, os.W_OK)
        out, said = commands.run("scrub", "--json")
        assert json.loads(out)["ok"] and json.loads(out)["noted"] is False
        assert said.count("could not be noted") == 1 and said.count("\n") == 1
        commands.fails(1, "prune", "--keep-last", "1")
        faultfs.fail()
    assert sorted(site.archive.rglob("*")) == before
