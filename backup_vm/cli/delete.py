# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak delete``: remove all sessions of a volume."""

import argparse
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import dry_run_option, key_option, volume_argument, yes_option
from backup_vm.terminal.text import count_text

if TYPE_CHECKING:
    from backup_vm.jobs.removal import Removal
    from backup_vm.volumes import Contents, Named


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
    from backup_vm.cli.removing import foresee, remove

    context = Context(options)
    with context.contents(writing=not options.dry_run) as contents:
        if options.dry_run:
            return foresee(context, contents, lambda now: _chosen(now, _volume(context, now)))
        volume = _volume(context, contents)
        removal, lines = _chosen(contents, volume)
        for line in lines:
            context.warn(line)
        sessions = count_text(len(volume.sessions), "session")
        if unread := len(contents.unread(volume)):
            sessions += f", and {unread} that cannot be read"
        context.confirm(f"Remove all of {volume.name}, {sessions}? This cannot be undone.")
        return remove(context, removal)


def _volume(context: Context, contents: "Contents") -> "Named":
    name = context.options.volume
    return contents.lost(name) or contents.one(name)


def _chosen(contents: "Contents", volume: "Named") -> "tuple[Removal, list[str]]":
    """All sessions of a volume, and what is to be said of them before."""
    from backup_vm.jobs.removal import Removal

    doomed = [(volume, session) for session in volume.sessions]
    lines = contents.spoilt(doomed) + contents.unread(volume)
    entirely = frozenset({volume.id})
    return Removal(contents.archive, contents.volumes, doomed, entirely=entirely), lines
