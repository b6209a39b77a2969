"""``sparsebak delete``: remove all sessions of a volume."""

import argparse
from typing import Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import dry_run_option, key_option, yes_option
from backup_vm.cli.prune import remove
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
    delete.add_argument("volume", metavar="QUBE/VOLUME", help="the volume to remove")
    dry_run_option(delete, "only show what would be removed")
    yes_option(delete)
    key_option(delete)
    delete.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.volumes import one

    context = Context(options)
    with context.open(writing=True) as archive:
        volume = one(context.volumes(archive, context.keys(archive)), options.volume)
        if not options.dry_run:
            sessions = count_text(len(volume.sessions), "session")
            context.confirm(f"Remove all of {volume.name}, {sessions}? This cannot be undone.")
        doomed = [(volume, session) for session in volume.sessions]
        return remove(context, archive, doomed, options.dry_run, entirely=frozenset({volume.id}))
