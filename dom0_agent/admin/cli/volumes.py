# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak-agent volumes``: what is backed up, what is left out, and why; written down for
calls.
"""

import argparse
import json
from typing import Any

from dom0_agent.admin.catalog import write_down
from dom0_agent.catalog import open_catalog
from dom0_agent.config import load


def add_to(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "volumes",
        help="show what is backed up, and what is left out and why",
        description=(
            "Shows the volumes that are backed up, and those left out, with the reason. On Qubes OS"
            " this asks qubesd. Backup VMs get its answer until the list is renewed, which a"
            " timer does every ten minutes."
        ),
    )
    command.add_argument(
        "--caller", default="", metavar="NAME", help="list volumes as seen by this backup VM"
    )
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    config = load(options.config)
    write_down(config)
    catalog = open_catalog(config, options.caller)
    if options.json:
        volumes = [
            {"qube": v.qube, "volume": v.volume, "pool": v.pool.name, "live": bool(v.live)}
            for v in catalog.volumes()
        ]
        skipped = [{"name": one.name, "reason": one.reason} for one in catalog.skipped()]
        print(json.dumps({"volumes": volumes, "skipped": skipped}))
        return 0
    for volume in catalog.volumes():
        print(f"{volume.name:40} in {volume.pool.name}")
    for left in catalog.skipped():
        print(f"{left.name:40} left out: {left.reason}")
    return 0
