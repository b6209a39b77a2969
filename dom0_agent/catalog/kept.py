# SPDX-License-Identifier: GPL-2.0-or-later
"""Catalog ``qubes``: the list of volumes that dom0's timer wrote down last, ``catalog.json`` in the
state folder.

It is some minutes old. That widens nothing: policy decides about each call at its time, and the
list can only take away from that. A qube made since is not listed yet. Of one removed since, its
storage says so when a snapshot is taken. Whether a qube runs is not in it: the storage knows, for
the volume with the live data exists only then. Other options in agent.toml than those that it was
made with make it worthless, so that what an administrator excludes is excluded at once.
"""

import hashlib
import json
import time
from pathlib import Path
from typing import NamedTuple

from common import checked
from common.durable import UNREADABLE, read_small
from common.override import override
from dom0_agent.catalog import Skipped, VolumeCatalog, identified
from dom0_agent.config import Config, Volume, recall, remember
from dom0_agent.tracking.identities import load
from wire.status import Code, Refused

FORMAT = 1
OWN = "it is the backup VM itself; name it in the list 'include' to have it too"


class Kept(NamedTuple):
    """What the file says. ``asked``: Unix seconds when qubesd was asked; ``options``: digest of the
    configuration that it was asked for; ``named``: qubes that ``include`` names.
    """

    asked: int
    options: str
    named: tuple[str, ...]
    volumes: tuple[Volume, ...]
    skipped: tuple[Skipped, ...]

    def to_bytes(self) -> bytes:
        """The file."""
        skipped = [[one.name, one.reason, one.failed] for one in self.skipped]
        volumes = [remember(volume) for volume in self.volumes]
        fields = {**self._asdict(), "volumes": volumes, "skipped": skipped}
        return checked.dump({"format": FORMAT, **fields})

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Kept":
        """Undo to_bytes; raise ValueError."""
        fields = checked.load(raw)
        if fields.pop("format", None) != FORMAT:
            raise ValueError("it is of another version of sparsebak")
        return cls(
            asked=fields["asked"],
            options=fields["options"],
            named=tuple(fields["named"]),
            volumes=tuple(recall(volume) for volume in fields["volumes"]),
            skipped=tuple(Skipped(*one) for one in fields["skipped"]),
        )


def place(config: Config) -> Path:
    """Where the list is."""
    return config.state_dir / "catalog.json"


def options_digest(config: Config) -> str:
    """Of what the list depends on in agent.toml."""
    options = json.dumps(config.qubes, sort_keys=True, default=str)
    return hashlib.blake2b(options.encode(), digest_size=16).hexdigest()


def read(config: Config) -> Kept:
    """The list as it was written last; Refused when there is none that is good for anything."""
    path = place(config)
    try:
        kept = Kept.from_bytes(read_small(path))
        if kept.options != options_digest(config):
            raise ValueError(f"[qubes] in {config.path} is not what it was made for")
    except FileNotFoundError:
        text = f"qubes were not listed yet ({path})"
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        text = f"{path} cannot be read: {error.strerror}"
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        text = f"{path} cannot be used: {error}"
    else:
        return kept
    raise Refused(Code.NOT_LISTED, f"{text}; run: sparsebak-agent volumes")


class KeptCatalog(VolumeCatalog):
    """See VolumeCatalog."""

    def __init__(self, config: Config, caller: str = "") -> None:
        self._kept, identities = read(config), load(config.state_dir)
        self._volumes = self._kept.volumes
        if identities.kept:  # a qube may have been renamed since
            self._volumes = tuple(identified(volume, identities) for volume in self._volumes)
        self._own = caller if caller not in self._kept.named else ""

    @override
    @property
    def age(self) -> float:
        return time.time() - self._kept.asked

    @override
    def volumes(self) -> tuple[Volume, ...]:
        return tuple(volume for volume in self._volumes if volume.qube != self._own)

    @override
    def skipped(self) -> tuple[Skipped, ...]:
        own = (Skipped(self._own, OWN),) if self._own else ()
        return (*self._kept.skipped, *own)

    @override
    def find(self, qube: str, volume: str) -> Volume | None:
        for skipped in self._kept.skipped:
            if skipped.failed and skipped.name in (qube, f"{qube}/{volume}"):
                raise Refused(Code.INTERNAL, f"{skipped.name}: {skipped.reason}")
        return next((v for v in self.volumes() if (v.qube, v.volume) == (qube, volume)), None)
