"""Which volumes exist and where they lie: one module for each way of knowing."""

from typing import Protocol

from dom0_agent.config import Config, Volume


class Catalog(Protocol):
    """A list of volumes."""

    def volumes(self) -> tuple[Volume, ...]:
        """All volumes that may be backed up, in the order they are to be taken."""

    def find(self, qube: str, volume: str) -> Volume | None:
        """The volume of that name, or None."""


def open_catalog(config: Config) -> Catalog:
    """The catalog that the configuration asks for."""
    from dom0_agent.catalog.static import StaticCatalog

    return StaticCatalog(config)
