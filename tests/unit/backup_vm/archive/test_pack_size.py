# SPDX-License-Identifier: GPL-2.0-or-later
"""Packs are as large as suits an archive, or as is asked for."""

from pathlib import Path

import pytest

from backup_vm.archive.pack_size import LARGEST, LEAST, pack_size, parse_pack_size
from tests.kit import Site

MiB, GiB, TiB = 1 << 20, 1 << 30, 1 << 40


@pytest.mark.parametrize(
    ("stored", "size"),
    [(0, 32), (500 * GiB, 32), (TiB, 64), (3 * TiB, 128), (9 * TiB, 512), (100 * TiB, 512)],
)
def test_they_grow_with_the_archive(tmp_path: Path, stored: int, size: int) -> None:
    with Site(tmp_path).open(True) as archive:
        if stored:
            archive.catalog.add_pack("packs/00/a.pack", stored)
        assert pack_size(archive) == size * MiB
        archive.pack_size = 5 * MiB
        assert pack_size(archive) == 5 * MiB


def test_sizes_that_are_no_files_are_added_up(tmp_path: Path) -> None:
    """Files with holes, say, as whoever writes the disk can make them."""
    with Site(tmp_path).open(True) as archive:
        for at in range(3):
            archive.catalog.add_pack(f"packs/00/{at}.pack", (1 << 63) - 1)
        assert pack_size(archive) == 512 * MiB


@pytest.mark.parametrize("text", ["3M", "513M", "1T", "", "-5M", "many"])
def test_what_is_no_size_of_a_pack_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_pack_size(text)
    assert parse_pack_size("4M") == LEAST and parse_pack_size("512M") == LARGEST
