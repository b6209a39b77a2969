# SPDX-License-Identifier: GPL-2.0-or-later
"""An office for each test."""

import itertools
from pathlib import Path

import pytest

from tests.remote.conftest import network, s3, server, sftp
from tests.remote.kit import Server
from tests.upkeep.kit import Office

__all__ = ["network", "s3", "server", "sftp"]

_numbers = itertools.count()


@pytest.fixture
def office(
    quick_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Office:
    """An empty one, in a folder in memory."""
    return Office(quick_folder, monkeypatch, capsys)


@pytest.fixture
def remote_office(
    quick_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    server: Server,  # noqa: F811
) -> Office:
    """One whose archives are on a server, a test for each kind."""
    place = server.url(f"office-{next(_numbers)}")
    return Office(quick_folder, monkeypatch, capsys, place)
