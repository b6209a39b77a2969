# SPDX-License-Identifier: GPL-2.0-or-later
"""Removing sessions, for the commands that do: how it is shown before, done, and reported."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from backup_vm.cli.context import Context
from backup_vm.cli.keeping import removed
from backup_vm.errors import Exit
from backup_vm.jobs.removal import Removal

if TYPE_CHECKING:
    from backup_vm.archive.prune import Pruned
    from backup_vm.volumes import Contents

Choosing = Callable[["Contents"], tuple[Removal, list[str]]]
"""Chooses what goes; also what is to be said before."""


def remove(context: Context, removal: Removal) -> int:
    """Remove sessions; returns the exit code."""
    done = removed(context, removal)
    code = _complain(context, removal, done)
    context.done(removal.row(done, dry_run=False), *removal.report(done))
    return code


def foresee(context: Context, contents: "Contents", choose: Choosing) -> int:
    """Only say what removing sessions would do (--dry-run); returns the exit code. They are chosen
    again where another machine changes the archive meanwhile.
    """
    looking = contents.archive.looking

    def look() -> "tuple[Removal, list[str], Pruned]":
        removal, lines = choose(contents.now() if looking.count else contents)
        return removal, lines, removal.foreseen()

    removal, lines, done = looking.steady(look, lambda found: found[1])
    for line in lines:
        context.warn(line)
    code = _complain(context, removal, done)
    context.result(removal.row(done, dry_run=True), "\n".join(removal.plan(done)))
    return code


def _complain(context: Context, removal: Removal, done: "Pruned") -> int:
    """Say what was not, or would not be, removed; returns the exit code."""
    held = removal.held()
    for reason in (*done.refused, *held):
        context.warn(reason)
    if done.refused or removal.archive.found:
        return Exit.DAMAGED
    return Exit.TOO_MUCH if held else Exit.OK
