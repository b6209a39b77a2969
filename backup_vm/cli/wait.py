# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak wait``: until nothing else of sparsebak runs on this machine. dom0 asks so before it
shuts down a backup VM that it started.
"""

import argparse
import time
from typing import Any

from backup_vm import stopping
from backup_vm.cli.context import Context
from backup_vm.cli.options import checked
from backup_vm.errors import LockedError
from common.text import parse_seconds

_STEP = 0.5
_NAMED = 3


def add_to(commands: Any) -> None:
    """Declare the command."""
    wait = commands.add_parser(
        "wait",
        help="wait until nothing else of sparsebak runs on this machine",
        description=(
            "Waits until nothing else of sparsebak runs on this machine, of any user and on any"
            " archive, so that it can be shut down. Exit code 11 means that something still does."
        ),
    )
    wait.add_argument(
        "--for",
        dest="patience",
        type=checked(parse_seconds),
        metavar="SECONDS",
        help="how long at most (default: without end)",
    )
    wait.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm import processes

    context = Context(options)
    processes.hide_from_others()
    begun = time.monotonic()
    while found := processes.others():
        waited = time.monotonic() - begun
        if options.patience is not None and waited >= options.patience:
            names = ", ".join(f"{one.command} ({one.pid})" for one in found[:_NAMED])
            more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
            raise LockedError(f"still at work on this machine: {names}{more}", "wait for it to end")
        stopping.sleep(_STEP)
    context.done({}, "Nothing of sparsebak runs here.")
    return 0
