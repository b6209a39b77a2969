# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of a backup run, volume by volume."""

from dataclasses import dataclass, field

from backup_vm.errors import SparsebakError


@dataclass
class Done:
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


@dataclass
class Report:
    """What became of a run."""

    done: list[Done] = field(default_factory=list)
    failed: list[tuple[str, SparsebakError]] = field(default_factory=list)
    spoilt: list[str] = field(default_factory=list)
    """Session files that this run found to be spoilt, and no run before it."""
    proven: int = 0
    """New sessions that proved authentic and complete, where that was asked for."""
    unproven: list[tuple[str, SparsebakError]] = field(default_factory=list)
    """New sessions that did not, or could not be asked about."""
