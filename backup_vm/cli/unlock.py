# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak unlock``: remove the lease of a run that was cut off, where this cannot be seen from
here.
"""

import argparse
from contextlib import closing
from typing import Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import yes_option
from backup_vm.terminal.text import count_text


def add_to(commands: Any) -> None:
    """Declare the command."""
    unlock = commands.add_parser(
        "unlock",
        help="remove the lease of a run that was cut off, which keeps other runs away",
        description=(
            "Removes leases that nobody holds any more: those of processes of this machine that are"
            " gone, and those not renewed for half an hour. Asks before it removes any other;"
            " without --yes they stay where nobody can be asked. A run whose lease is removed ends"
            " within a minute or so, when it would renew it: begin no other before."
        ),
    )
    yes_option(unlock)
    unlock.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.archive import lease_files, parameters
    from backup_vm.archive.lease import in_use
    from backup_vm.archive.storage import open_storage
    from backup_vm.errors import LockedError

    context = Context(options)
    with closing(open_storage(context.location())) as storage:
        parameters.load(storage)  # nothing is removed from what is no archive
        locks = storage.locks()
        found = {
            name: holder
            for kind in (lease_files.WRITER, lease_files.NOTES)
            for name, (_, holder) in lease_files.look(locks, kind).items()
        }
        held = {n: h for n, h in found.items() if h is not None and not h.gone()}
        removed = [name for name in found if name not in held]
        for name in removed:
            locks.remove(name)
        for name, holder in held.items():
            if not options.yes and not context.may_ask:
                error = in_use(storage.describe(), holder)
                raise LockedError(str(error), "if that run is over: sparsebak unlock --yes")
            context.confirm(f"Remove the lease of a run that may not be over ({holder})?")
            locks.remove(name)
            removed.append(name)
    context.done(
        {"removed": sorted(removed)},
        f"Removed {count_text(len(removed), 'lease')}." if removed else "No run had a lease.",
    )
    return 0
