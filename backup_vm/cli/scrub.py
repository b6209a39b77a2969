# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak scrub``: check every file of the archive against its checksums. Needs no key and no
agent.
"""

import argparse
from typing import Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import part_options, rate_option
from backup_vm.errors import Exit


def add_to(commands: Any) -> None:
    """Declare the command."""
    scrub = commands.add_parser(
        "scrub",
        help="check the archive's files against their checksums",
        description=(
            "Checks every file of the archive. Reports damage; damaged chunks are sent again by the"
            " next backup. Needs no key and no agent. With --sample or --older-than, a part of the"
            " packs, which are nearly all of an archive: what was not checked for longest comes"
            " first, so that regular runs come to all."
        ),
    )
    part_options(scrub, "packs", "checked")
    rate_option(scrub)
    scrub.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.archive.scrub import foreign
    from backup_vm.jobs.scrubbing import scrub_part

    context = Context(options)
    with context.open(writing=None) as archive:
        context.limit_rate(archive)
        with context.progress("scrub") as progress:
            done = scrub_part(archive, progress, options.sample, options.older_than)
        for line in foreign(archive):
            context.warn(line)
        if not archive.writing and not done.sound:
            context.warn("the archive cannot be written to: the next backup does not know of this")
    for problem in done.problems():
        context.warn(problem)
    for line in done.outside:
        context.warn(line)
    sound = done.sound and not done.outside
    row: dict[str, Any] = {"damaged": done.damaged(), "ok": sound}
    looked_at, there = len(done.looked_at), len(done.there)
    if options.sample is not None or options.older_than is not None:
        row |= {"outside": done.outside, "packs": looked_at, "of": there}
    context.done(row, *([_words(looked_at, there)] if sound else []))
    return Exit.OK if sound else Exit.DAMAGED


def _words(looked_at: int, there: int) -> str:
    part = f" in this part: {looked_at} of {there} packs" if looked_at < there else ""
    return f"No damage found{part}."
