# SPDX-License-Identifier: GPL-2.0-or-later
"""A session that lacks chunks is pruned: what its successor takes over of them is missing there."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import Commands
from tests.kit import GRAIN, Site

Make = Callable[[Site], Commands]
PRUNE = ("prune", "--keep-last", "1", "--max-removed", "100%", "--min-age", "0d")
CHUNKS = 12

pytestmark = pytest.mark.usefixtures("small_packs")


@pytest.fixture
def copied(site: Site, commands_for: Make) -> Path:
    """A copy of two sessions, of which the first lacks chunks."""
    back_up(site, 1, CHUNKS)
    commands, copy = commands_for(site), site.root / "copy"
    commands.run("copy", str(copy))
    first = sorted(copy.rglob("*.pack"))
    back_up(site, 2, 1)
    commands.run("copy", str(copy))
    max(first, key=lambda path: path.stat().st_size).unlink()
    return copy


def back_up(site: Site, seed: int, chunks: int) -> None:
    """A session in which the first ``chunks`` are new."""
    if not site.image().stat().st_size:
        site.image().write_bytes(bytes(CHUNKS * GRAIN))
    with open(site.image(), "r+b") as image:
        image.write(random.Random(seed).randbytes(chunks * GRAIN))
    site.backup()


def spoilt(site: Site, copy: Path) -> list[str]:
    """Which are known to be spoilt, of those there are."""
    with site.open(folder=copy) as archive:
        assert archive.catalog.spoilt() <= {*archive.session_files()}
        return sorted(archive.catalog.spoilt())


def test_the_successor_is_named_and_copied_again(
    site: Site, copied: Path, commands_for: Make
) -> None:
    commands = commands_for(site)
    commands.run(*PRUNE)
    with site.open(True, folder=copied) as archive:
        assert any("spoilt" in one for one in archive.warnings)
    said = commands.run("--archive", str(copied), *PRUNE, expect=4)[1]
    assert said.count("took over") == 1 and len(spoilt(site, copied)) == 1
    assert commands.run("--archive", str(copied), *PRUNE)[1] == ""
    commands.run("copy", str(copied))
    assert site.images(folder=copied) == site.images() and not spoilt(site, copied)


def test_what_it_has_superseded_is_not_missing(site: Site, commands_for: Make) -> None:
    back_up(site, 1, CHUNKS)
    max(site.archive.rglob("*.pack"), key=lambda path: path.stat().st_size).unlink()
    back_up(site, 2, CHUNKS)
    assert len(spoilt(site, site.archive)) == 1
    commands_for(site).run(*PRUNE)
    assert spoilt(site, site.archive) == []
    assert list(site.images().values()) == [site.contents()]
