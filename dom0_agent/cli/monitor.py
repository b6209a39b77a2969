"""``sparsebak-agent monitor``: walk the base snapshots on, for the volumes named or for all."""

import argparse
import sys
from typing import Any

from dom0_agent.archives import Archives
from dom0_agent.catalog import Catalog, open_catalog
from dom0_agent.cli import UserError
from dom0_agent.config import Volume, load
from dom0_agent.rotation import volume_rotation
from wire.names import parse_name, parse_volume_name
from wire.status import Refused


def add_to(commands: Any) -> None:
    """Declare the command."""
    monitor = commands.add_parser("monitor", help="find what changed since the last time, and keep only that")
    monitor.add_argument("volumes", nargs="*", metavar="QUBE[/VOLUME]", help="default: all")
    monitor.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    config = load(options.config)
    by_id = {archive.id.hex(): archive for archive in Archives(config.state_dir)}
    failures = 0
    for volume in select(open_catalog(config), options.volumes):
        try:
            with volume_rotation(config.state_dir, volume, by_id) as rotation:
                rotation.monitor()
        except (Refused, OSError) as error:
            print(f"sparsebak-agent: {error}", file=sys.stderr)
            failures += 1
    return 1 if failures else 0


def select(catalog: Catalog, names: list[str]) -> list[Volume]:
    """The volumes that the names stand for; every volume when there are none."""
    if not names:
        return list(catalog.volumes())
    chosen: list[Volume] = []
    for name in names:
        if "/" in name:
            qube, volume = parse_volume_name(name)
            found = [v for v in catalog.volumes() if (v.qube, v.volume) == (qube, volume)]
        else:
            qube = parse_name(name, "qube")
            found = [v for v in catalog.volumes() if v.qube == qube]
        if not found:
            raise UserError(f"there is no volume {name} in the catalog")
        chosen += [v for v in found if v not in chosen]
    return chosen
