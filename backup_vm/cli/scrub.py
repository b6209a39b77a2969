# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak scrub``: check every file of the archive against its checksums. Needs no key and no
agent.
"""

import argparse
import time
from typing import TYPE_CHECKING, Any

from backup_vm.cli import keeping
from backup_vm.cli.context import Context
from backup_vm.cli.options import parity_option, part_options, rate_option
from backup_vm.errors import Exit, SparsebakError
from backup_vm.terminal.text import count_text

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive
    from backup_vm.archive.scrub import Finding
    from backup_vm.jobs.parity import Upkeep


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
    parity_option(scrub)
    scrub.add_argument(
        "--repair",
        action="store_true",
        help="mend what is damaged or missing, as far as parity can",
    )
    scrub.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.archive import notes
    from backup_vm.archive.scrub import foreign, scrub

    context = Context(options)
    with context.open(writing=None) as archive:
        context.limit_rate(archive)
        chosen = _chosen(archive, options)
        upkeep = _upkeep(context, archive)
        with context.progress("scrub") as progress:
            findings = archive.looking.steady(
                lambda: list(scrub(archive, progress, chosen, upkeep)),
                lambda found: {finding.problem for finding in found},
            )
        sound = not findings and not archive.found
        there = archive.pack_files()
        looked_at = there if chosen is None else chosen
        damaged_files = [finding.file for finding in findings]
        notes.scrubbed(archive.storage, sound, looked_at, there, damaged_files)
        outside = [] if chosen is None else _outside(archive, chosen, findings)
        for line in foreign(archive):
            context.warn(line)
        _keep_parity(context, archive, upkeep)
        if not archive.writing and not sound:
            context.warn("the archive cannot be written to: the next backup does not know of this")
    for finding in findings:
        spoils = f"; spoils {', '.join(finding.sessions)}" if finding.sessions else ""
        context.warn(finding.problem + spoils)
    for line in outside:
        context.warn(line)
    damaged = [
        {"file": f.file, "problem": f.problem, "sessions": list(f.sessions)} for f in findings
    ]
    damaged += [
        {"file": file, "problem": reason, "sessions": [file]}
        for file, reason in archive.found.items()
        if file not in {finding.file for finding in findings}
    ]
    sound = sound and not outside
    row: dict[str, Any] = {"damaged": damaged, "ok": sound, "mended": upkeep.mended}
    if chosen is not None:
        row |= {"outside": outside, "packs": len(looked_at), "of": len(there)}
    lines = [f"mended {archive.storage.describe(name)}" for name in upkeep.mended]
    left = "No damage left" if lines else "No damage found"
    context.done(row, *lines, *([left + _part(len(looked_at), len(there))] if sound else []))
    return Exit.OK if sound else Exit.DAMAGED


def _part(looked_at: int, there: int) -> str:
    return f" in this part: {looked_at} of {there} packs." if looked_at < there else "."


def _upkeep(context: Context, archive: "Archive") -> "Upkeep":
    """What looks at parity, and with --repair mends by it."""
    from backup_vm.jobs.parity import Upkeep

    repairing = context.options.repair
    if repairing and not archive.writing:
        raise SparsebakError(
            f"{archive.storage.describe()} cannot be written to, so that nothing can be mended",
            "mount it for writing, or mend a copy of it",
        )
    upkeep = Upkeep(archive, repairing)
    if repairing and not upkeep.files:
        context.warn("there is no parity to mend by; sparsebak scrub --parity makes it")
    return upkeep


def _keep_parity(context: Context, archive: "Archive", upkeep: "Upkeep") -> None:
    """Make and renew parity where that is asked for; else say where it is out of date."""
    share = keeping.share(context)
    if share is not None and archive.writing:
        keeping.keep(context, archive, lambda progress: upkeep.keep(share, progress))
    elif upkeep.stale:
        context.warn(
            f"{count_text(len(upkeep.stale), 'file')} changed since parity was made, or is damaged"
            " parity; sparsebak scrub --parity makes it again"
        )


def _chosen(archive: "Archive", options: argparse.Namespace) -> list[str] | None:
    """The packs to look at; None for all."""
    if options.sample is None and options.older_than is None:
        return None
    from backup_vm.archive import notes
    from backup_vm.errors import DamagedError
    from backup_vm.jobs.sampling import due, packs_to_check

    try:
        found = notes.load(archive.storage)
    except DamagedError:  # reported by the scrub
        found = notes.Notes()
    now = int(time.time())
    candidates = packs_to_check(archive.pack_files(), archive.storage.sizes("packs"), found, now)
    return due(candidates, options.older_than, options.sample, now)


def _outside(archive: "Archive", chosen: list[str], findings: "list[Finding]") -> list[str]:
    """What is known to be damaged, outside of this part."""
    from backup_vm.jobs import known_damage

    said = {file for finding in findings for file in finding.sessions}
    return known_damage.outside(archive, {id: id for id in archive.sessions()}, {*chosen, *said})
