# SPDX-License-Identifier: GPL-2.0-or-later
"""Removing sessions, for the commands that do: how it is shown before, done, and reported."""

from backup_vm.cli.context import Context
from backup_vm.cli.keeping import removed
from backup_vm.errors import Exit
from backup_vm.jobs.removal import Removal


def remove(context: Context, removal: Removal) -> int:
    """Remove sessions, or only say what that would do (--dry-run); returns the exit code."""
    dry_run = context.options.dry_run
    done = removal.foreseen() if dry_run else removed(context, removal)
    held = removal.held()
    for reason in (*done.refused, *held):
        context.warn(reason)
    row = removal.row(done, dry_run)
    if dry_run:
        context.result(row, "\n".join(removal.plan(done)))
    else:
        context.done(row, *removal.report(done))
    if done.refused or removal.archive.found:
        return Exit.DAMAGED
    return Exit.TOO_MUCH if held else Exit.OK
