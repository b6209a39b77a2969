# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of kinds of storage, and what each is."""

from pathlib import Path

import pytest

from dom0_agent import sources, targets
from dom0_agent.config import DRIVERS, Pool, Volume
from dom0_agent.targets import file, lvm


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_table_names_the_modules_that_are_used(
    driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned = list[str]()
    for module in (file, lvm):
        monkeypatch.setattr(module, "clean", lambda _, name=module.__name__: cleaned.append(name))
    volume = Volume("work", "private", Pool("pool", driver, tmp_path, "group", "thin"), "work.img")
    source = sources.Sources(tmp_path).open(volume)
    targets.clean(source)
    used = (type(source).__module__, *cleaned)
    assert used == tuple(f"dom0_agent.{name}" for name in DRIVERS[driver])
