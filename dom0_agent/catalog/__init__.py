# SPDX-License-Identifier: GPL-2.0-or-later
"""Which volumes exist and where they are: one module for each way of knowing without asking
anybody.

On Qubes OS that is a list that dom0's own timer and commands write (``dom0_agent.admin.catalog``).
"""

import hashlib
from typing import NamedTuple, Protocol

from dom0_agent.config import Config, Volume
from dom0_agent.tracking.identities import Identities

SETTINGS = "settings"
"""The volume of a qube's settings, and the driver of the pool of all documents."""
CONFIG = ("dom0", "config")
"""The volume of dom0's own configuration."""


class Skipped(NamedTuple):
    """A qube, or one volume of it, that is not backed up, and why. ``failed``: nobody could tell
    whether it is to be, or it cannot be just now. ``unsupported``: it would be, on other storage.
    """

    name: str
    reason: str
    failed: bool = False
    unsupported: bool = False


class VolumeCatalog(Protocol):
    """A list of volumes."""

    def volumes(self) -> tuple[Volume, ...]:
        """All volumes that may be backed up, in the order they are to be taken."""

    def skipped(self) -> tuple[Skipped, ...]:
        """What is there and left out."""

    def find(self, qube: str, volume: str) -> Volume | None:
        """The volume of that name, or None; Refused when nobody could tell of it."""

    @property
    def age(self) -> float:
        """Seconds since it was known to be so."""


def open_catalog(config: Config, caller: str = "") -> VolumeCatalog:
    """The catalog that the configuration asks for, as it is for a caller: its own volumes are left
    out unless named.
    """
    if config.catalog == "qubes":
        from dom0_agent.catalog.kept import KeptCatalog

        return KeptCatalog(config, caller)
    from dom0_agent.catalog.static import StaticCatalog

    return StaticCatalog(config)


def dedup_domain(name: str) -> bytes:
    """A deduplication domain, 16 bytes, of all volumes that are given the same name for it."""
    return hashlib.blake2b(name.encode(), digest_size=16, person=b"sparsebak domain").digest()


def identified(volume: Volume, identities: Identities) -> Volume:
    """The volume with its qube's identity, and what is made from that."""
    identity = identities.of(volume.qube)
    if identity == volume.identity:
        return volume
    domain = volume.dedup_domain
    if domain == dedup_domain(f"{volume.identity}/{volume.volume}"):  # one of its own
        domain = dedup_domain(f"{identity}/{volume.volume}")
    return volume._replace(identity=identity, dedup_domain=domain)


def is_document(qube: str, volume: str) -> bool:
    """Whether a volume on Qubes OS is a document of dom0: settings, or its configuration."""
    return (qube, volume) == CONFIG if qube == "dom0" else volume == SETTINGS
