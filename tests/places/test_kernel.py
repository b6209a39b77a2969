# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole life of an archive on file systems of the kernel that not every machine's kernel has."""

from pathlib import Path

import pytest

from tests.places.life import Life
from tests.places.mounts import KERNELS


@pytest.mark.parametrize("kind", KERNELS)
def test_a_whole_life(tmp_path: Path, kind: str) -> None:
    with KERNELS[kind](tmp_path) as mount:
        Life(tmp_path, str(mount / "archive")).live(copy=str(mount / "copy"))
