# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak-agent forget``: stop following a volume, drop its snapshots and what dom0 remembers
of it.
"""

import argparse
import sys
from typing import Any

from common.text import printable
from dom0_agent.admin.catalog import ask, find_anywhere
from dom0_agent.admin.cli import UserError, confirm, yes_option
from dom0_agent.admin.leftovers import forget
from dom0_agent.config import load
from dom0_agent.tracking.state import known_volumes
from wire.names import parse_volume_name
from wire.status import Refused


def add_to(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "forget",
        help="drop a volume's snapshots and state; its next backup is a full one",
        description=(
            "Drops the snapshots and the state of a volume, after asking. Its sessions stay in the"
            " archives; its next backup compares everything."
        ),
    )
    command.add_argument(
        "volume", nargs="?", metavar="QUBE/VOLUME", help="the volume; it may be gone already"
    )
    command.add_argument("--all", action="store_true", help="all volumes")
    yes_option(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    state_dir = load(options.config).state_dir
    if options.all == (options.volume is not None):
        raise UserError("name a volume, or give --all")
    known = set(known_volumes(state_dir))
    catalog = ask(load(options.config))
    listed = {
        (volume.qube, volume.volume) for volume in catalog.volumes()
    }  # may have snapshots, too
    names = known | listed if options.all else {parse_volume_name(options.volume)}
    if unknown := [f"{qube}/{name}" for qube, name in names - known - listed]:
        raise UserError(f"nothing is known of {unknown[0]}; see: sparsebak-agent status")
    if not names:
        print("Nothing is followed.")
        return 0
    what = f"{len(names)} volumes" if options.all else options.volume
    confirm(options, f"Drop the snapshots of {what} and what is known of the last sessions?")
    failures = 0
    for qube, name in sorted(names):
        try:
            forget(state_dir, qube, name, find_anywhere(catalog, qube, name))
        except (Refused, OSError) as error:  # the others go all the same
            failures += 1
            text = str(error)
            text = text if f"{qube}/{name}" in text else f"{qube}/{name}: {text}"
            print(f"sparsebak-agent: {printable(text)}", file=sys.stderr)
    return 1 if failures else 0
