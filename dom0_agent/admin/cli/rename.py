# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak-agent rename OLD NEW``: say that NEW is the qube that was called OLD, so that it
continues that one's history.
"""

import argparse
from collections.abc import Collection, Mapping
from typing import Any

from dom0_agent.admin.catalog import ask, write_down
from dom0_agent.admin.cli import UserError, confirm, yes_option
from dom0_agent.admin.leftovers import who_is_who
from dom0_agent.admin.qubes_catalog import QubesCatalog
from dom0_agent.admin.renaming import change, followed, nothing_kept, renamed
from dom0_agent.catalog import VolumeCatalog
from dom0_agent.config import load
from dom0_agent.tracking.identities import DOM0
from dom0_agent.tracking.state import known_volumes
from wire.names import parse_name


def add_to(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "rename",
        help="let a qube continue the history of one that had another name",
        description=(
            "Says that the qube NEW is the one that was called OLD and is gone: it keeps its"
            " sessions, its chunks and what changed since. A qube whose UUID stays is found without"
            " this; one that Qube Manager renames is a copy with another UUID. Where NEW has"
            " sessions of its own, they are kept apart."
        ),
    )
    command.add_argument("old", metavar="OLD", help="the name that it had, as status shows it")
    command.add_argument("new", metavar="NEW", help="the name that it has")
    yes_option(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    config = load(options.config)
    old, new = parse_name(options.old, "qube"), parse_name(options.new, "qube")
    catalog = ask(config)
    there = _listed(catalog)
    identities = who_is_who(config.state_dir, catalog)
    known = {identity for identity, _ in known_volumes(config.state_dir)}
    identity = identities.by_name(old) or identities.of(old)
    if DOM0 in (old, new) or old == new:
        raise UserError("name two qubes: the name that it had, and the one that it has")
    if identity not in known and identities.name(old) != old:  # no other has had that name since
        raise UserError(f"{old} is called {identities.name(old)} here; see: sparsebak-agent status")
    _require_renamed(old, new, there)
    if identity not in known:  # a mistyped name, or dom0's state was lost
        confirm(
            options,
            f"nothing is known of {old} here. Let {new} continue what an archive has of it?",
        )
    holder = identities.of(new)
    if holder in known:
        confirm(
            options,
            f"{new} has sessions of its own, which are kept apart. Let it continue those of {old}?",
        )
    empty = nothing_kept(config.state_dir)
    after = change(
        config.state_dir, lambda known: renamed(followed(known, there), old, new, there, empty)
    )
    write_down(config)
    print(f"{new} continues the history of {old}.")
    if holder in known:
        print(f"What it had itself is kept as {after.name(holder)}.")
    return 0


def _require_renamed(old: str, new: str, there: Collection[str]) -> None:
    """Raise UserError unless of the two names the new one alone is that of a qube."""
    if old in there:
        raise UserError(
            f"there is a qube {old}, and what is known of it is its own; a copy has a history of"
            " its own"
        )
    if new not in there:
        raise UserError(f"there is no qube {new}; see: sparsebak-agent volumes")


def _listed(catalog: VolumeCatalog) -> Mapping[str, str]:
    """UUIDs of the qubes that there are, by name; nothing where nobody tells one."""
    if isinstance(catalog, QubesCatalog):
        return catalog.listed
    return dict.fromkeys((volume.qube for volume in catalog.volumes()), "")
