# SPDX-License-Identifier: GPL-2.0-or-later
"""Which volumes names stand for."""

from typing import cast

import pytest

from backup_vm.archive.archive import Archive
from backup_vm.archive.notes import Notes
from backup_vm.errors import UsageError
from backup_vm.volumes import Contents, Named

VOLUMES = [
    Named(qube, volume, f"{qube}-{volume}", (), Notes()) for qube in "ab" for volume in ("x", "y")
]


def test_an_empty_name_never_stands_for_all() -> None:
    contents = Contents(cast(Archive, None), None, VOLUMES)
    assert contents.select() == contents.select(None) == VOLUMES
    assert contents.select("a") == VOLUMES[:2] and contents.select("b/y", "a/x") == [
        VOLUMES[3],
        VOLUMES[0],
    ]
    for names in ("",), ("a", ""):
        with pytest.raises(UsageError):
            contents.select(*names)
