# SPDX-License-Identifier: GPL-2.0-or-later
"""An office for each test."""

from pathlib import Path

import pytest

from tests.upkeep.kit import Office


@pytest.fixture
def office(
    quick_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Office:
    """An empty one, in a folder in memory."""
    return Office(quick_folder, monkeypatch, capsys)
