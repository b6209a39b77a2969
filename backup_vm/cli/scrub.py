# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak scrub``: check every file of the archive against its checksums. Needs no key and no
agent.
"""

import argparse
from typing import TYPE_CHECKING, Any

from backup_vm.cli import keeping
from backup_vm.cli.context import Context
from backup_vm.cli.options import parity_option, part_options, rate_option, wait_option
from backup_vm.errors import Exit, SparsebakError
from backup_vm.terminal.text import count_text

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive
    from backup_vm.jobs.parity import ParityScrub


def add_to(commands: Any) -> None:
    """Declare the command."""
    scrub = commands.add_parser(
        "scrub",
        help="check the archive's files against their checksums",
        description=(
            "Checks every file of the archive. Reports damage; damaged chunks are sent again by the"
            " next backup. Needs no key and no agent. With --sample or --older-than, a part of the"
            " packs, which are nearly all of an archive: what was not checked for longest comes"
            " first, so that regular runs come to all. With --parity it makes files by which"
            " --repair mends what a disk has lost since."
        ),
    )
    part_options(scrub, "packs", "checked")
    rate_option(scrub)
    wait_option(scrub)
    parity_option(scrub)
    scrub.add_argument(
        "--repair",
        action="store_true",
        help="mend what is damaged or missing, as far as parity can",
    )
    scrub.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.archive import noting
    from backup_vm.archive.scrub import foreign
    from backup_vm.jobs.scrubbing import scrub_part

    context = Context(options)
    with context.open(writing=None) as archive:
        context.limit_rate(archive)
        parity = _parity_of(context, archive)
        with context.progress("scrub") as progress:
            done = scrub_part(archive, progress, options.sample, options.older_than, parity)
        for line in foreign(archive):
            context.warn(line)
        kept = _keep_parity(context, archive, parity)
        if not archive.writing and not done.sound:
            context.warn("the archive cannot be written to: the next backup does not know of this")
        elif done.unnoted is not None:
            context.warn(noting.line(done.unnoted))
    for problem in done.problems():
        context.warn(problem)
    for line in done.outside:
        context.warn(line)
    sound = done.sound and not done.outside
    row: dict[str, Any] = {
        "damaged": done.damaged(),
        "ok": sound,
        "mended": parity.mended,
        "noted": done.unnoted is None,
    }
    looked_at, there = len(done.looked_at), len(done.there)
    if options.sample is not None or options.older_than is not None:
        row |= {"outside": done.outside, "packs": looked_at, "of": there}
    lines = [f"mended {archive.storage.describe(name)}" for name in parity.mended]
    left = "No damage left" if lines else "No damage found"
    context.done(row, *lines, *([left + _part(looked_at, there)] if sound else []))
    return (Exit.OK if kept else Exit.FAILED) if sound else Exit.DAMAGED


def _part(looked_at: int, there: int) -> str:
    return f" in this part: {looked_at} of {there} packs." if looked_at < there else "."


def _parity_of(context: Context, archive: "Archive") -> "ParityScrub":
    """What looks at parity, and with --repair mends by it."""
    from backup_vm.jobs.parity import ParityScrub

    repairing, place = context.options.repair, archive.storage.describe()
    if repairing and not archive.writing:
        raise SparsebakError(
            f"{place} cannot be written to, so that nothing can be mended",
            "mount it for writing, or mend a copy of it",
        )
    if context.options.parity is not None and not archive.writing:
        raise SparsebakError(
            f"{place} cannot be written to, so that no parity can be made",
            "mount it for writing, or leave out --parity",
        )
    parity = ParityScrub(archive, repairing)
    if repairing and not parity.files:
        context.warn("there is no parity to mend by; to make it, run: sparsebak scrub --parity")
    return parity


def _keep_parity(context: Context, archive: "Archive", parity: "ParityScrub") -> bool:
    """Make and renew parity where that is asked for; else say where it is out of date. Returns
    False where the command itself asked for it and it was not made.
    """
    share = keeping.share(context)
    if share is not None and archive.writing:
        done = keeping.keep(context, archive, lambda progress: parity.keep(share, progress))
        return done or context.options.parity is None
    if parity.stale:
        context.warn(
            f"{count_text(len(parity.stale), 'file')} changed since parity was made, or is damaged"
            " parity; to make it again, run: sparsebak scrub --parity"
        )
    return True
