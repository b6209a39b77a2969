# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak-agent forget``: stop following a volume, drop its snapshots and what dom0 remembers
of it.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.text import printable, reason
from dom0_agent.admin.catalog import ask, find_anywhere
from dom0_agent.admin.cli import UserError, confirm, yes_option
from dom0_agent.admin.leftovers import forget, who_is_who
from dom0_agent.config import load
from dom0_agent.tracking.identities import Identities
from dom0_agent.tracking.state import VolumeState, known_volumes
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
    catalog = ask(load(options.config))
    identities = who_is_who(state_dir, catalog)
    found = {one.name: one for one in _known(state_dir, identities)}
    for volume in catalog.volumes():  # may have snapshots, too
        found.setdefault(volume.name, VolumeState.of(state_dir, volume))
    names = list(found) if options.all else ["/".join(parse_volume_name(options.volume))]
    if unknown := [name for name in names if name not in found]:
        raise UserError(f"nothing is known of {unknown[0]}; see: sparsebak-agent status")
    if not names:
        print("Nothing is followed.")
        return 0
    what = f"{len(names)} volumes" if options.all else options.volume
    confirm(options, f"Drop the snapshots of {what} and what is known of the last sessions?")
    failures = 0
    for name in sorted(names):
        store = found[name]
        try:
            there = find_anywhere(catalog, store.qube, store.volume)
            of_it = there is not None and there.identity == store.identity
            forget(state_dir, store, there if of_it else None)
        except (Refused, OSError) as error:  # the others go all the same
            failures += 1
            text = reason(error)
            text = text if name in text else f"{name}: {text}"
            print(f"sparsebak-agent: {printable(text)}", file=sys.stderr)
    return 1 if failures else 0


def _known(state_dir: Path, identities: Identities) -> Iterator[VolumeState]:
    for identity, name in known_volumes(state_dir):
        yield VolumeState(state_dir, identity, name, identities.name(identity))
