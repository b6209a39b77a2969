# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak verify``: prove sessions authentic and complete, with the key if it is here, through
the agent otherwise.
"""

import argparse
import time
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import given, part_options, rate_option
from backup_vm.cli.reading import reading_options
from backup_vm.errors import DamagedError, Exit, SparsebakError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backup_vm.archive.archive import Archive
    from backup_vm.archive.sessions import Session
    from backup_vm.jobs.verifying import Choice, Prover
    from backup_vm.volumes import Named


def add_to(commands: Any) -> None:
    """Declare the command."""
    verify = commands.add_parser(
        "verify",
        help="prove sessions authentic and complete",
        description=(
            "Proves that sessions are what dom0 sealed, and complete: here with the key, else"
            " through dom0. With --sample or --older-than, a part of them: what was not proven for"
            " longest comes first, so that regular runs come to all."
        ),
    )
    verify.add_argument(
        "volume", nargs="?", metavar="QUBE/VOLUME", help="whose sessions (default: all volumes)"
    )
    verify.add_argument(
        "--session",
        type=given,
        metavar="S",
        help=("a session, 'latest' (default), or 'all' (default with --sample and --older-than)"),
    )
    part_options(verify, "sessions", "proven")
    rate_option(verify)
    reading_options(verify)
    verify.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.jobs.verifying import Prover

    context = Context(options)
    if options.source is not None:
        return _from_backup_vm(context)
    part = options.sample is not None or options.older_than is not None
    wanted = options.session or ("all" if part else "latest")
    with context.contents() as contents:
        context.limit_rate(contents.archive)
        volumes = contents.select(options.volume)
        damaged = _damaged(contents.archive, volumes, options.volume, wanted)
        chosen = _chosen(volumes, wanted, options)
        with context.progress("verify") as progress:
            prover = Prover(
                contents, lambda: context.agent(contents.archive), progress, context.warn
            )
            prover.prove_all(chosen)
        outside = _outside(contents.archive, volumes, prover) if part else []
        outside += _lost(contents.archive, volumes, options.volume, wanted)
        if not (volumes or damaged or outside or part):
            raise SparsebakError("there is no session to prove", "run: sparsebak backup")
    context.warn_removed(prover.removed)
    code = _tell(context, prover, damaged, outside)
    # of a session that was named, or of the newest one, nothing is known now
    return Exit.LOCKED if prover.removed and code == Exit.OK and wanted != "all" else code


def _from_backup_vm(context: Context) -> int:
    """Verify with a grant, from the backup VM that --from names: nothing is noted there."""
    from backup_vm.errors import UsageError
    from backup_vm.jobs.granted import granted, problem_of

    options, rows = context.options, []
    if options.sample is not None or options.older_than is not None:
        raise UsageError("what was proven is not known with --from", "name sessions: --session S")
    there = granted(options.source, options.grant, options.volume)
    records = there.find(options.session or "latest")
    with context.progress("verify", sum(one.size for one in records)) as progress:
        for record in records:
            problem = problem_of(there, record, progress)
            session = there.title(record)
            if problem is None:
                context.say(f"{record.name} {session}: authentic and complete")
            else:
                context.warn(f"{record.name} {session}: {problem}")
            row = {"qube": record.qube, "volume": record.volume, "session": session}
            rows.append({**row, "ok": problem is None, "problem": problem and str(problem)})
    context.done({"sessions": rows, "damaged": [], "noted": False})
    return Exit.OK if all(row["ok"] for row in rows) else Exit.DAMAGED


def _chosen(volumes: "list[Named]", wanted: str, options: argparse.Namespace) -> "list[Choice]":
    """The sessions to prove, in order."""
    from backup_vm.jobs.sampling import due
    from backup_vm.jobs.verifying import candidate
    from backup_vm.volumes import find_session

    def sessions(volume: "Named") -> "Sequence[Session]":
        if wanted == "all":
            return volume.sessions
        if wanted == "latest":  # one that is newer and cannot be read is named: see _damaged
            return volume.sessions[-1:]
        return [find_session(volume, wanted)]

    asked = [(volume, session) for volume in volumes for session in sessions(volume)]
    if options.sample is None and options.older_than is None:
        return asked
    candidates = [candidate(volume, session) for volume, session in asked]
    return due(candidates, options.older_than, options.sample, int(time.time()))


def _damaged(
    archive: "Archive", chosen: "list[Named]", volume: str | None, wanted: str
) -> list[DamagedError]:
    """Session files that cannot be read, and may be among those that were asked for."""
    if volume and wanted not in ("latest", "all"):
        return []
    from backup_vm.archive.naming import volume_of

    ids = {one.id for one in chosen}
    return [
        error for file, error in archive.damaged.items() if not volume or volume_of(file) in ids
    ]


def _lost(archive: "Archive", chosen: "list[Named]", volume: str | None, wanted: str) -> list[str]:
    """Sessions that are known to be missing, and may be among those that were asked for."""
    if volume is None:
        return archive.missing()
    if wanted == "latest":
        return [line for one in chosen if (line := archive.lost_newest(one.id)) is not None]
    return [line for one in chosen for line in archive.missing(one.id)] if wanted == "all" else []


def _outside(archive: "Archive", volumes: "list[Named]", prover: "Prover") -> list[str]:
    """What is known to be damaged, outside of the part that was proven."""
    from backup_vm.jobs import known_damage

    return known_damage.outside(
        archive,
        {volume.id: volume.name for volume in volumes},
        {proof.session.file for proof in prover.proofs},
    )


def _tell(
    context: Context, prover: "Prover", damaged: list[DamagedError], outside: list[str]
) -> int:
    for proof in prover.proofs:
        name = f"{proof.volume.name} {proof.session.name}"
        if proof.problem is None:
            context.say(f"{name}: authentic and complete")
        else:
            context.warn(f"{name}: {proof.problem}")
    for line in (said := [str(error) for error in damaged] + outside):
        context.warn(line)
    if prover.unnoted is not None:
        from backup_vm.archive import noting

        context.warn(noting.line(prover.unnoted))
    rows = [proof.row() for proof in prover.proofs]
    nothing = [] if prover.proofs or prover.removed or said else ["Nothing is due."]
    context.done({"sessions": rows, "damaged": said, "noted": prover.unnoted is None}, *nothing)
    return Exit.OK if not said and prover.sound else Exit.DAMAGED
