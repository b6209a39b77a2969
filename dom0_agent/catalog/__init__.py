"""Which volumes exist and where they are: one module for each way of knowing."""

from dataclasses import dataclass
from typing import Protocol

from dom0_agent.config import Config, Volume


@dataclass(frozen=True)
class Skipped:
    """A qube, or one volume of it, that is not backed up, and why. ``failed``: nobody could tell
    whether it is to be.
    """

    name: str
    reason: str
    failed: bool = False


class VolumeCatalog(Protocol):
    """A list of volumes."""

    def volumes(self) -> tuple[Volume, ...]:
        """All volumes that may be backed up, in the order they are to be taken."""

    def skipped(self) -> tuple[Skipped, ...]:
        """What is there and left out."""

    def find(self, qube: str, volume: str, restoring: bool = False) -> Volume | None:
        """The volume of that name, or None. ``restoring``: one that is there but not backed up will
        do.
        """

    def absent(self, qube: str) -> Volume:
        """The settings of a qube that does not exist, to create it again; Refused when it does,
        or cannot be.
        """


def open_catalog(config: Config, caller: str = "") -> VolumeCatalog:
    """The catalog that the configuration asks for, as it is for a caller: its own volumes are left
    out unless named.
    """
    if config.catalog == "qubes":
        from dom0_agent.catalog.qubes import QubesCatalog

        return QubesCatalog(config, caller)
    from dom0_agent.catalog.static import StaticCatalog

    return StaticCatalog(config)
