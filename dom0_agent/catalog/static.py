"""Catalog ``static``: the volumes listed in agent.toml."""

from dom0_agent.catalog import Skipped
from dom0_agent.config import Config, Volume


class StaticCatalog:
    """See VolumeCatalog."""

    age = 0.0

    def __init__(self, config: Config) -> None:
        self._volumes = config.volumes

    def volumes(self) -> tuple[Volume, ...]:
        """See VolumeCatalog."""
        return self._volumes

    def skipped(self) -> tuple[Skipped, ...]:
        """See VolumeCatalog."""
        return ()

    def find(self, qube: str, volume: str) -> Volume | None:
        """See VolumeCatalog."""
        return next((v for v in self._volumes if (v.qube, v.volume) == (qube, volume)), None)
