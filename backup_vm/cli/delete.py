# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak delete``: remove all sessions of a volume."""

import argparse
from typing import Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import dry_run_option, key_option, volume_argument, yes_option
from backup_vm.terminal.text import count_text


def add_to(commands: Any) -> None:
    """Declare the command."""
    delete = commands.add_parser(
        "delete",
        help="remove all sessions of a volume",
        description=(
            "Removes all sessions of a volume from the archive. Asks first; where nobody can be"
            " asked, it fails without --yes."
        ),
    )
    volume_argument(delete, "the volume to remove")
    dry_run_option(delete, "only show what would be removed")
    yes_option(delete)
    key_option(delete)
    delete.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.cli.removing import remove
    from backup_vm.jobs.removal import Removal

    context = Context(options)
    with context.contents(writing=not options.dry_run) as contents:
        volume = contents.lost(options.volume) or contents.one(options.volume)
        context.warn_spoilt(contents, [(volume, session) for session in volume.sessions])
        context.warn_unread(contents, [volume])
        if not options.dry_run:
            sessions = count_text(len(volume.sessions), "session")
            if unread := len(contents.unread(volume)):
                sessions += f", and {unread} that cannot be read"
            context.confirm(f"Remove all of {volume.name}, {sessions}? This cannot be undone.")
        doomed = [(volume, session) for session in volume.sessions]
        removal = Removal(contents.archive, doomed, entirely=frozenset({volume.id}))
        return remove(context, removal)
