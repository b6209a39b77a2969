# SPDX-License-Identifier: GPL-2.0-or-later
"""The power is cut while commands run: archive and dom0 recover, and the next backup is exact.
``make powercut`` has more.
"""

import os
from pathlib import Path

import pytest

from backup_vm.archive import pack_writer
from backup_vm.archive.storage.local import LocalStorage
from tests.conftest import cannot, in_memory
from tests.faultfs import missing
from tests.kit import GRAIN
from tests.powercut.campaign import Campaign, clean
from tests.powercut.operations import operations
from wire import slots

CUTS = 14


def test_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0 or missing():
        cannot(missing() or "mounting a file system needs root")
    monkeypatch.setattr(LocalStorage, "pack_size", 3 * GRAIN)
    monkeypatch.setattr(pack_writer, "RECORD_SECONDS", 0)
    monkeypatch.setattr(slots, "SCRYPT_LOG_N", 10)
    folder = in_memory(tmp_path / "powercut")
    try:
        campaign = Campaign(folder)
        campaign.record(operations)
        assert campaign.cut(CUTS) == CUTS
    finally:
        clean(folder)
    assert not campaign.problems, "\n".join(campaign.problems)
