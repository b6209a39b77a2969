# SPDX-License-Identifier: GPL-2.0-or-later
"""Differences between file systems of which not all can be read."""

from typing import Any

import pytest

from backup_vm.errors import DamagedError
from backup_vm.files.answers import Entry, FileSystemError, Stat
from backup_vm.files.changes import Change, differences
from backup_vm.files.listing import Listing
from backup_vm.files.session import Found


def about(mode: int, time: int) -> Stat:
    return Stat(mode, 1, 0, 0, 5, 0, time, time, 0, 0)


class Files:
    """A folder that cannot be read, a file that cannot be, and a link, which can."""

    damaged = False

    def __init__(self, turn: int, error: Exception) -> None:
        self._turn, self._error = turn, error

    def find(self, path: bytes) -> Found:
        return Found(b"/", 1, about(0o40755, 0))

    def names(self, node: int) -> Listing:
        if node != 1:
            raise self._error
        modes = {b"a": 0o40755, b"b": 0o100644, b"c": 0o120777}
        return Listing(
            Entry(name, number, about(mode, self._turn))
            for number, (name, mode) in enumerate(modes.items(), 2)
        )

    def extents(self, found: Found) -> Any:
        raise self._error

    def link(self, node: int) -> bytes:
        return b"to %d" % self._turn


@pytest.mark.parametrize("error", [FileSystemError("it is odd"), DamagedError("it is damaged")])
def test_what_cannot_be_read_hides_no_other_change(error: Exception) -> None:
    sides: list[Any] = []
    for turn in range(2):
        side: Any = type("Side", (), {"files": Files(turn, error)})()
        sides.append(side)
    told: list[tuple[bytes, str]] = []
    found: list[Change] = list(
        differences(sides[0], sides[1], b"/", lambda *what: told.append(what))
    )
    assert [(one.what, one.path) for one in found] == [("M", b"/c")]
    assert {path for path, _ in told} == {b"/a", b"/b"}
    assert any(side.files.damaged for side in sides) == isinstance(error, DamagedError)
