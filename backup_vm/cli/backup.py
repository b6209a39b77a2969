# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak backup``: back up the volumes named, or all."""

import argparse
from typing import TYPE_CHECKING, Any

from backup_vm.cli import keeping
from backup_vm.cli.context import Context
from backup_vm.cli.options import (
    dry_run_option,
    given,
    key_option,
    moment_options,
    rate_option,
    wait_option,
)
from backup_vm.cli.pack_size import pack_size_option, use_pack_size
from backup_vm.errors import DamagedError, Exit, SparsebakError, UsageError
from backup_vm.terminal.text import count_text, size_text, table, waiting_text

if TYPE_CHECKING:
    from backup_vm.agent.client import Agent
    from backup_vm.archive.archive import Archive
    from backup_vm.archive.notes import Note
    from backup_vm.jobs.outcome import Done, Report
    from backup_vm.volumes import Contents
    from wire.chunks import Keys
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
    _note_options(backup)
    backup.add_argument(
        "--verify",
        action="store_true",
        help="afterwards prove what was stored: with the key if it is given, else through dom0",
    )
    key_option(backup)
    rate_option(backup)
    pack_size_option(backup)
    moment_options(backup)
    wait_option(backup)
    backup.add_argument(
        "--ping-url",
        type=given,
        metavar="URL",
        help="tell this URL (as of healthchecks.io) of start, success or failure",
    )
    backup.set_defaults(run=run)


def _note_options(backup: argparse.ArgumentParser) -> None:
    backup.add_argument(
        "--tag",
        action="append",
        default=[],
        metavar="TAG",
        help="tag the new sessions; can be repeated",
    )
    backup.add_argument(
        "--note",
        default="",
        metavar="TEXT",
        help="a line of text on the new sessions; stored in clear",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    if options.all and options.volumes:
        raise UsageError("--all and names of volumes contradict each other", "give one of the two")
    if options.passphrase_file is not None and not options.verify:
        raise UsageError("a key is for --verify alone", "give it, or leave the key out")
    note = _asked_note(options)
    context = Context(options)
    if options.dry_run:
        return _begin(context, note)
    context.require_good_moment()
    url, metrics = context.setting("ping_url"), context.config.texts.get("metrics")
    if not url and not metrics:
        return _begin(context, note)
    from backup_vm.reporting.telling import told

    return told(lambda: _begin(context, note), url, metrics, context.warn)


def _begin(context: Context, note: "Note | None") -> int:
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
        if options.lock_wait:  # the mains may have gone meanwhile
            context.require_good_moment()
        context.limit_rate(archive)
        use_pack_size(context, archive)
        keys = context.keys(archive) if options.verify else None
        agent.use(archive.parameters.archive, archive.parameters.chunk_size)
        chosen = _choose(_listed(context, agent), options.volumes)
        if options.dry_run:
            return _preview(context, chosen)
        before = keeping.files(context, archive)
        run = BackupRun(
            archive, agent, context.bar("backup"), options.ignore_free_space, context.warn
        )
        report = run.run(chosen)
        unnoted = None if note is None else _note(archive, report, note)
        if options.verify and report.done:
            _verify(context, archive, keys, agent, chosen, report)
        _tell(context, report)
        if unnoted is not None:
            context.warn(f"what was stored got neither tag nor note: {unnoted.line()}")
        pruned = Exit.OK
        try:
            # What is old goes only when what is new has proven good, if that is asked for.
            if context.config.pruning.after_backup and report.done and not report.unproven:
                pruned = _prune(context, archive, chosen, report)
        except SparsebakError as error:  # the backup itself is done, and was reported so
            context.warn(f"nothing was pruned after the backup: {error.line()}")
            return _exit(report) or error.code
        finally:
            keeping.after_backup(context, archive, before)
        if "metrics" in context.config.texts:
            _write_metrics(context, archive, agent)
    code = _exit(report) or (Exit.OK if unnoted is None else unnoted.code)
    return code or pruned


def _verify(
    context: Context,
    archive: "Archive",
    keys: "Keys | None",
    agent: "Agent",
    listed: "list[VolumeEntry]",
    report: "Report",
) -> None:
    """Prove what this run stored, and note in the report what did not prove good."""
    from backup_vm.archive import noting
    from backup_vm.jobs.verifying import Prover

    contents = _contents(archive, keys, listed)
    stored = {done.id for done in report.done}
    chosen = [
        (volume, session)
        for volume in contents.volumes
        for session in volume.sessions
        if session.clear.session.hex() in stored
    ]
    with context.progress("verify") as progress:
        prover = Prover(contents, lambda: agent, progress, context.warn)
        try:
            prover.prove_all(chosen)
        except SparsebakError as error:  # the backup itself is done, and is reported so
            report.unproven.append(("what was stored", error))
    if prover.unnoted is not None:
        context.warn(noting.line(prover.unnoted))
    report.proven = sum(proof.problem is None for proof in prover.proofs)
    report.unproven += [
        (f"{proof.volume.name} {proof.session.name}", DamagedError(proof.problem))
        for proof in prover.proofs
        if proof.problem is not None
    ]
    missed = len(chosen) - len(prover.proofs)
    if (missed or len(chosen) < len(stored)) and not report.unproven:
        lost = DamagedError("not every new session is there to be read", "run: sparsebak scrub")
        report.unproven.append(("what was stored", lost))


def _write_metrics(context: Context, archive: "Archive", agent: "Agent") -> None:
    """Write the settings' file of metrics as the archive is now; that it cannot be is a warning."""
    from backup_vm.reporting import metrics, status

    try:
        row, _ = status.look(archive, agent.list(), None, None, False)
        metrics.write(context.config.texts["metrics"], metrics.of_archive(row))
    except SparsebakError as error:
        context.warn(f"the metrics were not written: {error}")


def _note(archive: "Archive", report: "Report", note: "Note") -> SparsebakError | None:
    """Tag what was stored; returns why that could not be done: the backup is done all the same."""
    from backup_vm import failures
    from backup_vm.archive import noting

    try:
        noting.changed(
            archive, lambda every: every.sessions.update({done.id: note for done in report.done})
        )
    except SparsebakError as error:
        archive.storage.check()  # a lease that is lost ends the whole run
        return error
    except OSError as error:
        return SparsebakError(failures.text(error), failures.hint(error))
    return None


def _prune(
    context: Context, archive: "Archive", listed: "list[VolumeEntry]", report: "Report"
) -> Exit:
    """Prune by the settings' rules, of the volumes that were backed up; how that ended."""
    from backup_vm.archive.prune import prune
    from backup_vm.jobs.thinning import held, judge

    contents = _contents(archive, None, listed)
    done = {one.name for one in report.done}
    chosen = [volume for volume in contents.volumes if volume.name in done]
    verdicts = judge(contents, chosen, context.config.pruning)
    pruned = prune(archive, [verdict.session for verdict in verdicts if not verdict.keep])
    if pruned.sessions:
        context.say(
            f"{count_text(pruned.sessions, 'old session')} removed, {size_text(pruned.space)}"
            " freed."
        )
    for line in waiting_text(pruned.waiting, pruned.until):
        context.say(line)
    for sentence in (*pruned.refused, *held(verdicts)):
        context.warn(sentence)
    if pruned.refused:
        return Exit.DAMAGED
    return Exit.TOO_MUCH if held(verdicts) else Exit.OK


def _contents(archive: "Archive", keys: "Keys | None", listed: "list[VolumeEntry]") -> "Contents":
    """The archive's volumes as dom0 names them."""
    from backup_vm.volumes import Contents, stored_volumes

    told = {entry.volume_id.hex(): (entry.qube, entry.volume) for entry in listed}
    return Contents(archive, keys, stored_volumes(archive, keys, told))


def _exit(report: "Report") -> int:
    if report.spoilt:
        return Exit.DAMAGED
    if not report.failed:
        return report.unproven[0][1].code if report.unproven else Exit.OK
    return Exit.INCOMPLETE if report.done else report.failed[0][1].code


def _listed(context: Context, agent: "Agent") -> "list[VolumeEntry]":
    """What dom0 lists, and a warning where it has not looked for long."""
    listed = agent.list()
    if agent.list_age:
        context.warn(
            f"dom0 listed its qubes {agent.list_age // 60} minutes ago; one that was made since"
            " is not backed up (in dom0: systemctl enable --now sparsebak-monitor.timer)"
        )
    return listed


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
    sessions = [done._asdict() for done in report.done]
    context.done(
        {"sessions": sessions, "failed": failed, "spoilt": report.spoilt, "proven": report.proven},
        *_table(report.done),
        *([f"{count_text(report.proven, 'new session')} proven."] if report.proven else []),
    )
    for name, error in report.failed:
        context.warn(f"{name} was not backed up: {error.line()}")
    for name, error in report.unproven:
        context.warn(f"{name} was stored, but did not prove good: {error.line()}")


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
