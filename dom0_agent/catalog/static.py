"""Catalog ``static``: the volumes listed in agent.toml."""

from dom0_agent.catalog import Skipped
from dom0_agent.config import Config, Volume
from wire.status import Code, Refused


class StaticCatalog:
    """See Catalog."""

    def __init__(self, config: Config) -> None:
        self._volumes = config.volumes

    def volumes(self) -> tuple[Volume, ...]:
        """See Catalog."""
        return self._volumes

    def skipped(self) -> tuple[Skipped, ...]:
        """See Catalog."""
        return ()

    def find(self, qube: str, volume: str, restoring: bool = False) -> Volume | None:
        """See Catalog."""
        return next((v for v in self._volumes if (v.qube, v.volume) == (qube, volume)), None)

    def absent(self, qube: str) -> Volume:
        """See Catalog."""
        raise Refused(Code.NO_VOLUME, f"{qube} is not in the catalog")
