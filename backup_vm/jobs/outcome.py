# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of a backup run, volume by volume."""

from typing import NamedTuple

from backup_vm.errors import SparsebakError


class Done(NamedTuple):
    """What became of one volume."""

    qube: str
    volume: str
    session: str
    id: str
    """The session's id in hexadecimal."""
    size: int
    changed: int
    """Bytes of the volume in chunks that changed."""
    stored: int
    """Bytes newly stored for them."""
    full: bool
    resumed: bool

    @property
    def name(self) -> str:
        """The volume, for people: ``qube/volume``."""
        return f"{self.qube}/{self.volume}"


class Report:
    """What became of a run. ``spoilt``: session files that it found to be spoilt, and no run before
    it.
    """

    def __init__(self, spoilt: list[str]) -> None:
        self.done: list[Done] = []
        self.failed: list[tuple[str, SparsebakError]] = []
        self.spoilt = spoilt
        self.proven = 0
        """New sessions that proved authentic and complete, where that was asked for."""
        self.unproven: list[tuple[str, SparsebakError]] = []
        """New sessions that did not, or could not be asked about."""
