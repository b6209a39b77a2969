"""``sparsebak delete``: remove all sessions of a volume."""

import argparse
from typing import Any

from backup_vm.cli.context import Context, json_option, key_option
from backup_vm.cli.prune import remove


def add_to(commands: Any) -> None:
    """Declare the command."""
    delete = commands.add_parser("delete", help="remove all sessions of a volume")
    delete.add_argument("volume", metavar="QUBE/VOLUME")
    delete.add_argument(
        "-n", "--dry-run", action="store_true", help="only show what would be removed"
    )
    delete.add_argument("--yes", action="store_true", help="do not ask")
    key_option(delete)
    json_option(delete)
    delete.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.errors import SparsebakError
    from backup_vm.names import one

    context = Context(options)
    with context.open(writing=True) as archive:
        volume = one(context.volumes(archive, context.keys(archive)), options.volume)
        if context.may_ask and not (options.yes or options.dry_run or context.json):
            question = f"Remove all {len(volume.sessions)} sessions of {volume.name}? They cannot be had back. [y/N] "
            if input(question).strip().lower() not in ("y", "yes"):
                raise SparsebakError("nothing was removed")
        doomed = [(volume, session) for session in volume.sessions]
        return remove(context, archive, doomed, options.dry_run, entirely=frozenset({volume.id}))
