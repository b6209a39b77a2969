# SPDX-License-Identifier: GPL-2.0-or-later
"""Something that is no file in the place of a partial session."""

import os
from collections.abc import Callable
from pathlib import Path

from tests.certainty import cut_off_after
from tests.commands import Commands
from tests.kit import GRAIN, Site
from tests.mutation.scene import VOLUMES, build


def test_a_folder_in_its_place_keeps_no_volume_from_being_backed_up(
    tmp_path: Path, commands_for: Callable[[Site], Commands]
) -> None:
    site = build(tmp_path / "scene").site
    (partial,) = Path(site.archive).rglob("*.partial")
    partial.unlink()
    partial.mkdir()
    commands = commands_for(site)
    commands.run("backup", expect=None)  # finds out what is spoilt
    commands.run("backup")
    for name in VOLUMES:
        assert list(site.images(name).values())[-1] == site.contents(name)


def test_one_with_another_name_is_not_written_to(site: Site) -> None:
    """The archive was copied by hard links after a run that was cut off."""
    site.image().write_bytes(os.urandom(20 * GRAIN))
    cut_off_after(site, 9)
    (partial,) = site.archive.rglob("*.partial")
    there = site.root / "copy"
    os.link(partial, there)
    raw = there.read_bytes()
    site.backup()
    assert there.read_bytes() == raw and not list(site.archive.rglob("*.partial"))
    assert list(site.images().values())[-1] == site.contents()
