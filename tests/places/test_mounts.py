# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole life of an archive on each kind of mount."""

from pathlib import Path

import pytest

from tests.places.life import Life
from tests.places.mounts import MOUNTS


@pytest.mark.parametrize("kind", MOUNTS)
def test_a_whole_life(tmp_path: Path, kind: str) -> None:
    with MOUNTS[kind](tmp_path) as mount:
        Life(tmp_path, str(mount / "archive")).live(copy=str(mount / "copy"))
