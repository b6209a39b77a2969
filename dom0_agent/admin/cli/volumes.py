"""``sparsebak-agent volumes``: what is backed up, what is left out, and why."""

import argparse
import json
from typing import Any

from dom0_agent.catalog import open_catalog
from dom0_agent.config import load


def add_to(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "volumes",
        help="show what is backed up, and what is left out and why",
        description="Shows the volumes that are backed up, and those left out, with the reason.",
    )
    command.add_argument(
        "--caller", default="", metavar="NAME", help="list volumes as seen by this backup VM"
    )
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    catalog = open_catalog(load(options.config), options.caller)
    if options.json:
        volumes = [
            {"qube": v.qube, "volume": v.volume, "pool": v.pool.name, "live": bool(v.live)}
            for v in catalog.volumes()
        ]
        skipped = [{"name": s.name, "reason": s.reason} for s in catalog.skipped()]
        print(json.dumps({"volumes": volumes, "skipped": skipped}))
        return 0
    for volume in catalog.volumes():
        running = ", as it is while the qube runs" if volume.live else ""
        print(f"{volume.name:40} in {volume.pool.name}{running}")
    for left in catalog.skipped():
        print(f"{left.name:40} left out: {left.reason}")
    return 0
