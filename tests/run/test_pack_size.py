# SPDX-License-Identifier: GPL-2.0-or-later
"""Packs of the size that is asked for, by an option or by the settings, in a copy, too."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import Commands
from tests.kit import Site

MiB = 1 << 20


def sizes(archive: Path) -> list[int]:
    return sorted(path.stat().st_size for path in archive.rglob("*.pack"))


def test_packs_are_as_large_as_is_asked_for(
    tmp_path: Path, commands_for: Callable[[Site], Commands]
) -> None:
    site = Site(tmp_path / "site")
    commands, copies = commands_for(site), tmp_path / "copies"
    copies.mkdir()
    site.image().write_bytes(random.Random(1).randbytes(13 * MiB))
    commands.run("backup", "--pack-size", "4M")
    packs = sizes(site.archive)
    assert len(packs) == 4 and all(4 * MiB <= size < 5 * MiB for size in packs[1:])
    commands.run("copy", str(copies / "small"), "--pack-size", "6M")
    assert len(sizes(copies / "small")) == 3
    commands.settings('pack_size = "5M"\n')
    commands.run("copy", str(copies / "by-settings"))
    assert len(sizes(copies / "by-settings")) == 3
    assert all(5 * MiB <= size < 6 * MiB for size in sizes(copies / "by-settings")[1:])
    commands.settings("")
    commands.run("copy", str(copies / "large"))
    assert len(sizes(copies / "large")) == 1
    with pytest.raises(SystemExit):  # as argparse ends
        commands.run("backup", "--pack-size", "1M")
    commands.settings('pack_size = "1G"\n')
    assert "is not a size from 4M to 512M" in commands.fails(2, "backup")
