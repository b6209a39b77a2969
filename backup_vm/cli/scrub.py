# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak scrub``: check every file of the archive against its checksums. Needs no key and no
agent.
"""

import argparse
from typing import Any

from backup_vm.cli.context import Context
from backup_vm.errors import Exit


def add_to(commands: Any) -> None:
    """Declare the command."""
    scrub = commands.add_parser(
        "scrub",
        help="check the archive's files against their checksums",
        description=(
            "Checks every file of the archive. Reports damage; damaged chunks are sent again by the"
            " next backup. Needs no key and no agent."
        ),
    )
    scrub.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.archive.notes import checked
    from backup_vm.archive.scrub import foreign, scrub

    context = Context(options)
    with context.open(writing=None) as archive:
        with context.progress("scrub") as progress:
            findings = archive.looking.steady(
                lambda: list(scrub(archive, progress)),
                lambda found: {finding.problem for finding in found},
            )
        sound = not findings and not archive.found
        checked(archive.storage, sound)
        for line in foreign(archive):
            context.warn(line)
        if not archive.writing and not sound:
            context.warn("the archive cannot be written to: the next backup does not know of this")
    for finding in findings:
        spoils = f"; spoils {', '.join(finding.sessions)}" if finding.sessions else ""
        context.warn(finding.problem + spoils)
    damaged = [
        {"file": f.file, "problem": f.problem, "sessions": list(f.sessions)} for f in findings
    ]
    damaged += [
        {"file": file, "problem": reason, "sessions": [file]}
        for file, reason in archive.found.items()
        if file not in {finding.file for finding in findings}
    ]
    context.done({"damaged": damaged, "ok": sound}, *(["No damage found."] if sound else []))
    return Exit.OK if sound else Exit.DAMAGED
