# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak backup``: back up the volumes named, or all."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import dry_run_option
from backup_vm.errors import Exit, SparsebakError
from backup_vm.terminal.text import count_text, size_text, table

if TYPE_CHECKING:
    from backup_vm.agent.client import Agent
    from backup_vm.archive.archive import Archive
    from backup_vm.archive.notes import Note
    from backup_vm.jobs.backup import Done, Report
    from wire.messages import VolumeEntry


def add_to(commands: Any) -> None:
    """Declare the command."""
    backup = commands.add_parser(
        "backup",
        help="store a new session of each volume",
        description=(
            "Stores a new session of each volume named, or of all that dom0 lists. An interrupted"
            " session is resumed first."
        ),
    )
    backup.add_argument(
        "volumes", nargs="*", metavar="QUBE[/VOLUME]", help="what to back up (default: all)"
    )
    backup.add_argument("--all", action="store_true", help="back up all volumes (the default)")
    dry_run_option(backup, "only show what has changed, as of the last monitor run")
    backup.add_argument(
        "--ignore-free-space", action="store_true", help="begin even if the disk may be too small"
    )
    backup.add_argument(
        "--tag",
        action="append",
        default=[],
        metavar="TAG",
        help="tag the new sessions; may be given again",
    )
    backup.add_argument(
        "--note",
        default="",
        metavar="TEXT",
        help="a line of text on the new sessions; stored in clear",
    )
    backup.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    note = _asked_note(options)
    context = Context(options)
    context.location()
    agent = context.agent()
    agent.prepare("List")
    try:
        return _run(context, agent, note)
    finally:
        agent.close()


def _asked_note(options: argparse.Namespace) -> "Note | None":
    """What is to be said of the new sessions, if anything."""
    if not options.tag and not options.note:
        return None
    from backup_vm.archive.notes import Note, parse_note, parse_tag

    return Note(frozenset(parse_tag(tag) for tag in options.tag), parse_note(options.note))


def _run(context: Context, agent: "Agent", note: "Note | None") -> int:
    from backup_vm.jobs.backup import BackupRun

    options = context.options
    with context.open(writing=not options.dry_run) as archive:
        agent.use(archive.parameters.archive, archive.parameters.chunk_size)
        listed = agent.list()
        if agent.list_age:
            context.warn(
                f"dom0 listed its qubes {agent.list_age // 60} minutes ago; one that was made since"
                " is not backed up (in dom0: systemctl enable --now sparsebak-monitor.timer)"
            )
        chosen = _choose(listed, options.volumes)
        if options.dry_run:
            return _preview(context, chosen)
        run = BackupRun(
            archive, agent, context.bar("backup"), options.ignore_free_space, context.warn
        )
        report = run.run(chosen)
        if note is not None:
            _note(archive, report, note)
        _tell(context, report)
        if context.config.retention.after_backup and report.done:
            try:
                _prune(context, archive, chosen, report)
            except SparsebakError as error:  # the backup itself is done, and was reported so
                hint = f" ({error.hint})" if error.hint else ""
                context.warn(f"nothing was pruned after the backup: {error}{hint}")
                return _exit(report) or error.code
    return _exit(report)


def _note(archive: "Archive", report: "Report", note: "Note") -> None:
    from backup_vm.archive import notes

    notes.change(
        archive.storage,
        lambda every: every.sessions.update({done.id: note for done in report.done}),
    )


def _prune(
    context: Context, archive: "Archive", listed: "list[VolumeEntry]", report: "Report"
) -> None:
    """Prune by the settings' rules, of the volumes that were backed up."""
    from backup_vm.archive.prune import prune
    from backup_vm.jobs.thinning import judge
    from backup_vm.volumes import Contents, stored_volumes

    told = {entry.volume_id.hex(): (entry.qube, entry.volume) for entry in listed}
    contents = Contents(archive, None, stored_volumes(archive, None, told))
    done = {one.name for one in report.done}
    chosen = [volume for volume in contents.volumes if volume.name in done]
    verdicts = judge(contents, chosen, context.config.retention)
    pruned = prune(archive, [verdict.session for verdict in verdicts if not verdict.keep])
    if pruned.sessions:
        context.say(
            f"{count_text(pruned.sessions, 'old session')} removed, {size_text(pruned.space)}"
            " freed."
        )


def _exit(report: "Report") -> int:
    if report.spoilt:
        return Exit.DAMAGED
    if not report.failed:
        return Exit.OK
    return Exit.INCOMPLETE if report.done else report.failed[0][1].code


def _choose(listed: "list[VolumeEntry]", names: list[str]) -> "list[VolumeEntry]":
    from wire.messages import VOLUME_GONE

    present = [volume for volume in listed if not volume.flags & VOLUME_GONE]
    if not present:
        raise SparsebakError(
            "dom0 lists no volume to back up", "add volumes to the agent's configuration in dom0"
        )
    if not names:
        return present
    from backup_vm.volumes import matches

    for name in names:
        if not any(matches(name, volume.qube, volume.volume) for volume in present):
            raise SparsebakError(f"dom0 lists no volume {name}", "see: sparsebak status")
    return [v for v in present if any(matches(name, v.qube, v.volume) for name in names)]


def _preview(context: Context, chosen: "list[VolumeEntry]") -> int:
    rows = [[v.name, size_text(v.size), size_text(v.changed)] for v in chosen]
    data = [
        {"qube": v.qube, "volume": v.volume, "size": v.size, "changed": v.changed} for v in chosen
    ]
    context.result(
        {"volumes": data}, table([["VOLUME", "SIZE", "CHANGED"], *rows], frozenset({1, 2}))
    )
    return Exit.OK


def _tell(context: Context, report: "Report") -> None:
    failed = [{"volume": name, "error": str(error)} for name, error in report.failed]
    sessions = [asdict(done) for done in report.done]
    context.done(
        {"sessions": sessions, "failed": failed, "spoilt": report.spoilt}, *_table(report.done)
    )
    for name, error in report.failed:
        hint = f" ({error.hint})" if error.hint else ""
        context.warn(f"{name} was not backed up: {error}{hint}")


def _table(sessions: "list[Done]") -> list[str]:
    """What was stored, if anything was."""
    if not sessions:
        return []
    rows = []
    for one in sessions:
        words = [word for word, said in (("full", one.full), ("resumed", one.resumed)) if said]
        sizes = [size_text(size) for size in (one.size, one.changed, one.stored)]
        rows.append([one.name, one.session, *sizes, " ".join(words)])
    head = ["VOLUME", "SESSION", "SIZE", "CHANGED", "STORED", ""]
    return [table([head, *rows], frozenset({2, 3, 4}))]
