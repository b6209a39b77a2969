# SPDX-License-Identifier: GPL-2.0-or-later
"""A rename killed at every durable step: the volume has its old name or its new one, and one
history.
"""

import random
from pathlib import Path

from dom0_agent.admin import cli
from tests.crash.test_crash import copies
from tests.kit import GRAIN, Site, change, fill
from tests.steps import deaths


def test_rename(quick_folder: Path) -> None:
    built = Site(quick_folder / "site", volumes=("work/private",))
    fill(built.image(), 8 * GRAIN, 3)
    built.backup()
    text = built.config.read_text()
    built.config.write_text(text.replace('qube = "work"', 'qube = "play"'))
    before = built.contents()
    fresh = copies(built)
    site = next(fresh)

    def attempt() -> None:
        assert cli.main(["--config", str(site.config), "rename", "work", "play"]) == 0

    steps = 0
    for step in deaths(attempt):
        steps = step
        # Either nothing was done, and the same can be done again; or all of it.
        again = cli.main(["--config", str(site.config), "rename", "work", "play", "--yes"])
        change(site.image(), random.Random(step), resize=False)
        site.backup("play/private")
        images = list(site.images("play/private").values())
        assert again in (0, 1) and images == [before, site.contents()]
        assert site.scrubbed() == [] and not list(site.state.rglob("*.tmp"))
        assert [path.name for path in (site.state / "volumes").iterdir()] == ["work"]
        site = next(fresh)
    assert steps > 3
