# SPDX-License-Identifier: GPL-2.0-or-later
"""An archive's making and removal killed at every durable step: it is there or not, and no key
stays where nobody looks.
"""

from pathlib import Path

from dom0_agent.admin import cli
from tests.kit import Site
from tests.steps import deaths


def folders(site: Site) -> set[str]:
    return {path.name for path in (site.state / "archives").iterdir()}


def monitored(site: Site) -> None:
    assert cli.main(["--config", str(site.config), "monitor", "-q"]) == 0


def test_making_one(quick_folder: Path) -> None:
    site = Site(quick_folder / "site")
    (before,) = folders(site)
    common = ["--config", str(site.config), "archive"]
    add = [*common, "add", "new", "--caller", "vm", "--open"]
    steps = 0
    for step in deaths(lambda: cli.main(add)):
        steps = step
        monitored(site)
        made = folders(site) - {before}
        assert len(made) <= 1 and not any(name.startswith(".") for name in made), step
        if made:
            assert cli.main([*common, "remove", "new", "--yes"]) == 0
    assert steps > 5 and folders(site) == {before}


def test_removing_one(quick_folder: Path) -> None:
    site = Site(quick_folder / "site")
    (before,) = folders(site)
    common = ["--config", str(site.config), "archive"]

    def make() -> None:
        assert cli.main([*common, "add", "new", "--caller", "vm", "--open"]) == 0

    make()
    steps = 0
    for step in deaths(lambda: cli.main([*common, "remove", "new", "--yes"])):
        steps = step
        monitored(site)
        left = folders(site) - {before}
        assert not any(name.startswith(".") for name in left), step
        if not left:
            make()
    assert steps > 2
