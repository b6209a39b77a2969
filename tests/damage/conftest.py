# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of certainty share, and those of parity."""

from pathlib import Path

import pytest

from backup_vm.archive import pack_writer
from backup_vm.archive.storage.local import LocalStorage
from tests.certainty import three_sessions
from tests.damage import parity
from tests.kit import GRAIN, Site


@pytest.fixture
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of a few chunks, each written down at once."""
    monkeypatch.setattr(LocalStorage, "pack_size", 3 * GRAIN)
    monkeypatch.setattr(pack_writer, "RECORD_SECONDS", 0)


@pytest.fixture
def built(tmp_path: Path, small_packs: None) -> Site:
    """A site with three sessions of a volume."""
    return three_sessions(tmp_path)


@pytest.fixture(scope="session")
def made_with_parity(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site with parity, made once and copied by each test."""
    return parity.build(tmp_path_factory.mktemp("made") / "site")
