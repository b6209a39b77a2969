# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak-agent open``: show sessions of a volume in a disposable."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from common.text import printable
from dom0_agent.admin.cli import UserError, confirm, yes_option
from dom0_agent.admin.cli.grant import records, volume_and_sessions
from dom0_agent.admin.granting import Granted, find, granted_volumes, make, tell
from dom0_agent.config import Config, load


def add_to(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "open",
        help="on Qubes OS: show the files of a session in a disposable",
        description=(
            "On Qubes OS: starts a disposable without network, makes a read grant for it, and shows"
            " the files of one or more sessions there, read-only. It reads sealed chunks from the"
            " backup VM, which must run. When the disposable goes, so does its grant. Without a"
            " volume it asks for one."
        ),
    )
    volume_and_sessions(command, optional=True)
    command.add_argument(
        "--template",
        metavar="NAME",
        help="the disposable template (default: Qubes' own default_dispvm)",
    )
    yes_option(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from dom0_agent.admin import opening, unfinished

    config = load(options.config)
    if config.catalog != "qubes":
        raise UserError("this needs Qubes OS; elsewhere use: sparsebak mount, or sparsebak files")
    for left in unfinished.sweep(config.state_dir):
        print(f"sparsebak-agent: {left}, left by one that was killed, is removed", file=sys.stderr)
    if options.volume is None:
        options.volume = _chosen(config)
    of = find(config, options.volume, options.archive)
    place = opening.find(of.archive.caller, options.template)
    grant = make(of, records(options, config, of), options.session, every=False)
    names = ", ".join(grant.names.values())
    confirm(options, _question(of, names, place.template))
    tell(of, grant, "goes to a new disposable")  # of one that fails later it may be told, too
    name = opening.show(place, grant, config.state_dir)
    if not options.quiet:
        print(
            f"{name} shows {of.name} as of {names} in /mnt/sparsebak. It has no network: bring"
            f" files where they belong with qvm-copy, then shut it down: qvm-shutdown {name}"
        )
    return 0


def _question(of: Granted, names: str, template: str) -> str:
    return printable(f"Show {of.name} as of {names} in a new disposable of {template}?")


def _chosen(config: Config) -> str:
    """The volume that is named on the terminal, out of a list."""
    if not sys.stdin.isatty():
        raise UserError("name a volume, such as work/private: there is no terminal to ask on")
    volumes = granted_volumes(config)
    if not volumes:
        raise UserError("there is no volume with a backup yet")
    for number, name in enumerate(volumes, 1):
        print(f"{number:4}  {printable(name)}")
    return _picked(volumes, input("Which volume? Its number or name: ").strip())


def _picked(volumes: Sequence[str], answer: str) -> str:
    if answer.isascii() and answer.isdigit() and 1 <= int(answer) <= len(volumes):
        return volumes[int(answer) - 1]
    if not answer:
        raise UserError("nothing was opened")
    return answer
