# SPDX-License-Identifier: GPL-2.0-or-later
"""Something that is no file in the place of a partial session."""

from collections.abc import Callable
from pathlib import Path

from tests.commands import Commands
from tests.kit import Site
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
