"""Catalog ``static``: the volumes listed in agent.toml."""

from dom0_agent.config import Config, Volume


class StaticCatalog:
    """See Catalog."""

    def __init__(self, config: Config) -> None:
        self._volumes = config.volumes

    def volumes(self) -> tuple[Volume, ...]:
        """See Catalog."""
        return self._volumes

    def find(self, qube: str, volume: str) -> Volume | None:
        """See Catalog."""
        return next((v for v in self._volumes if (v.qube, v.volume) == (qube, volume)), None)
