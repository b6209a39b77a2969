# SPDX-License-Identifier: GPL-2.0-or-later
"""An archive on a disk that is mounted read-only: all that reads works, scrub too; what writes says
so in one line.
"""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.commands import Commands
from tests.kit import GRAIN, Site, fill


@pytest.fixture
def disk(small_disk: Path) -> Iterator[Path]:
    yield small_disk
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=False)


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
