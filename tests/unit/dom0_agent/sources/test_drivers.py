# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of kinds of storage, and what each is."""

from pathlib import Path

import pytest

from dom0_agent import sources, targets
from dom0_agent.config import DRIVERS, Pool, Volume, devices
from dom0_agent.targets import file, lvm, zfs


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_table_names_the_modules_that_are_used(
    driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = list[str]()
    for module, name in (
        (file, "FileReplacement"),
        (lvm, "LvmReplacement"),
        (zfs, "ZfsReplacement"),
    ):
        monkeypatch.setattr(module, name, lambda *_, of=module.__name__: begun.append(of))
    path = devices("tank") if driver == "zfs" else tmp_path
    volume = Volume("work", "private", Pool("pool", driver, path, "group", "thin"), "work.img")
    source = sources.Sources(tmp_path).open(volume)
    monkeypatch.setattr(type(source), "drop_unfinished", lambda _: None)
    targets.open(volume, 1, tmp_path)
    used = (type(source).__module__, *begun)
    assert used == tuple(f"dom0_agent.{name}" for name in DRIVERS[driver])
