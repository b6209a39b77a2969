# SPDX-License-Identifier: GPL-2.0-or-later
"""Catalog ``static``: the volumes listed in agent.toml."""

from common.override import override
from dom0_agent.catalog import Skipped, VolumeCatalog, identified
from dom0_agent.config import Config, Volume
from dom0_agent.tracking.identities import load


class StaticCatalog(VolumeCatalog):
    """See VolumeCatalog."""

    age = 0.0

    def __init__(self, config: Config) -> None:
        identities = load(config.state_dir)
        self._volumes = tuple(identified(volume, identities) for volume in config.volumes)

    @override
    def volumes(self) -> tuple[Volume, ...]:
        return self._volumes

    @override
    def skipped(self) -> tuple[Skipped, ...]:
        return ()

    @override
    def find(self, qube: str, volume: str) -> Volume | None:
        return next((v for v in self._volumes if (v.qube, v.volume) == (qube, volume)), None)
