# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak copy``: bring a second copy of the archive up to date, on another disk or at
a URL.
"""

import argparse
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import (
    given,
    guard_options,
    key_option,
    rate_option,
    retention_option,
    yes_option,
)
from backup_vm.cli.pack_size import pack_size_option, use_pack_size
from backup_vm.errors import Exit
from backup_vm.terminal.text import count_text, size_text

if TYPE_CHECKING:
    from backup_vm.jobs.copy import Copied


def add_to(commands: Any) -> None:
    """Declare the command."""
    copy = commands.add_parser(
        "copy",
        help="bring a second copy of the archive up to date; only what it lacks is sent",
        description=(
            "Brings a copy of the archive up to date, or makes one. Needs no key; with one, or in"
            " an open archive, only what proves authentic is sent. An interrupted copy resumes at"
            " the next run. The copy is an archive of its own, to restore from, prune, or even"
            " back up into. What cannot be read here is named, and all the rest is copied."
        ),
    )
    copy.add_argument(
        "target", type=given, metavar="DIR", help="the copy: a folder or a URL, as for --archive"
    )
    copy.add_argument(
        "--delete",
        action="store_true",
        help="remove sessions from the copy that are not here any more; asks first",
    )
    copy.add_argument(
        "--init",
        action="store_true",
        help="make a new copy where there was one before and is none now",
    )
    retention_option(
        copy,
        "where the copy is made now: what is stored there cannot be removed by any key for TIME",
    )
    guard_options(copy)
    rate_option(copy)
    pack_size_option(copy)
    yes_option(copy)
    key_option(copy)
    copy.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.archive.incomplete import spoilt_volumes
    from backup_vm.jobs.copy import Making, copy
    from backup_vm.jobs.guard import Guard
    from backup_vm.paths import expanded

    context = Context(options)
    target = expanded(options.target)

    def confirm(surplus: int) -> None:
        what = f"{count_text(surplus, 'session')} that {'is' if surplus == 1 else 'are'} not here"
        context.confirm(f"Remove {what} from {target}? They cannot be had back.")

    if options.delete:
        context.must_have_word(f"may sessions be removed from {target}?")
    with context.open() as archive, context.progress("copy") as progress:
        context.limit_rate(archive)
        use_pack_size(context, archive)
        for line in spoilt_volumes(archive):
            context.warn(line)
        delete = confirm if options.delete else None
        guard = Guard(options.max_removed, options.min_age).over(context.config.pruning.guard)
        making = Making(options.init, options.retention or 0)
        done = copy(archive, target, progress, delete, making, context.keys(archive), guard)
    _tell(context, done, target, guard.seconds)
    if done.failed:
        return Exit.DAMAGED
    return Exit.TOO_MUCH if done.held else Exit.OK


def _tell(context: Context, done: "Copied", target: str, min_age: int) -> None:
    from backup_vm.jobs.keep_rules import duration_text

    for problem in done.failed:
        context.warn(problem)
    context.warn_removed(done.gone)
    if done.unnoted is not None:
        context.warn(
            f"it could not be noted here that there is a copy ({done.unnoted}): another time, with"
            f" its disk not mounted, a new copy would be made in {target}"
        )
    for sentence in done.held:
        context.warn(sentence)
    fields = {"sessions": done.sessions, "stored": done.stored, "removed": done.removed}
    delete = context.options.delete
    if delete:
        fields |= {"spared": done.spared, "min_age": min_age}
    removed = f", {done.removed} removed" if delete else ""
    if delete and done.spared:
        age, what = duration_text(min_age), count_text(done.spared, "session")
        removed += f"; {what} that only it has, newer than {age}, left there (--min-age)"
    copied = f"{count_text(done.sessions, 'session')} copied, {size_text(done.stored)} sent"
    context.done(
        {
            **fields,
            "target": target,
            "failed": done.failed,
            "held": done.held,
            "noted": done.unnoted is None,
        },
        f"{target}: {copied}{removed}.",
    )
