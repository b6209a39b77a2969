"""``sparsebak prune``: remove sessions by name, by rules, or until there is room; all others stay
whole.
"""

import argparse
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import dry_run_option, key_option, yes_option
from backup_vm.errors import Exit
from backup_vm.terminal.text import count_text, size_text, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backup_vm.archive.archive import Archive
    from backup_vm.archive.sessions import Session
    from backup_vm.jobs.retention import Rules
    from backup_vm.jobs.thinning import Verdict
    from backup_vm.volumes import Named

_PERIODS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


def add_to(commands: Any) -> None:
    """Declare the command."""
    prune = commands.add_parser(
        "prune",
        help="remove sessions and reclaim their space",
        description=(
            "Removes sessions: those named, or all that no rule keeps. Without either, the rules in"
            " the settings file apply. A session is kept if any rule keeps it; the newest of a"
            " volume always is. On a terminal, asks before anything is removed."
        ),
    )
    prune.add_argument(
        "volumes", nargs="*", metavar="QUBE[/VOLUME]", help="whose sessions (default: all volumes)"
    )
    prune.add_argument(
        "--session", action="append", metavar="S", help="remove this one; may be given again"
    )
    for period in _PERIODS:
        what = (
            "the newest N"
            if period == "last"
            else f"the newest of each of the last N {_plural(period)} that have one"
        )
        prune.add_argument(
            f"--keep-{period}", type=_count, metavar="N", help=f"keep {what}; N may be 'unlimited'"
        )
    prune.add_argument(
        "--keep-within",
        type=_duration,
        metavar="TIME",
        help="keep all of the last TIME, such as 2d, 3w or 1y6m",
    )
    prune.add_argument(
        "--keep-tag",
        action="append",
        metavar="TAG",
        help="keep those with this tag; may be given again",
    )
    prune.add_argument(
        "--keep-default",
        action="store_true",
        help="keep all of the last day, daily for 30 days, weekly after",
    )
    prune.add_argument(
        "--until-free",
        metavar="ROOM",
        help="then remove the oldest until 10%% of the disk, or 20G, are free",
    )
    dry_run_option(prune, "only show what would stay, why, and what would go")
    yes_option(prune)
    key_option(prune)
    prune.set_defaults(run=run)


def _plural(period: str) -> str:
    return {"hourly": "hours", "daily": "days"}.get(period, period.removesuffix("ly") + "s")


def _count(text: str) -> int:
    from backup_vm.jobs.retention import parse_count

    return _checked(parse_count, text)


def _duration(text: str) -> int:
    from backup_vm.jobs.retention import parse_duration

    return _checked(parse_duration, text)


def _checked(parse: Any, text: str) -> int:
    try:
        return int(parse(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.errors import UsageError
    from backup_vm.volumes import find_session, select

    context = Context(options)
    rules = _rules(options)
    if options.session:
        if rules.any() or options.until_free:
            raise UsageError(
                "--session names what goes, and rules say what stays: give one of the two"
            )
        if not options.volumes:
            raise UsageError(
                "say of which volumes the session is to be removed",
                "for all of them name each qube",
            )
    with context.open(writing=not options.dry_run) as archive:
        volumes = context.volumes(archive, context.keys(archive))
        chosen = select(volumes, options.volumes)
        if options.session:
            doomed = [
                (volume, find_session(volume, name))
                for volume in chosen
                for name in options.session
            ]
            _ask(context, doomed)
            return remove(context, archive, doomed, options.dry_run)
        verdicts = judge(context, archive, volumes, chosen, rules, options.until_free)
        if options.dry_run and not context.json:
            context.result({}, _plan(verdicts))
        doomed = [(verdict.volume, verdict.session) for verdict in verdicts if not verdict.keep]
        _ask(context, doomed)
        return remove(context, archive, doomed, options.dry_run, verdicts)


def _ask(context: Context, doomed: "Sequence[tuple[Named, Session]]") -> None:
    if context.options.dry_run or not doomed:
        return
    names = {volume.name for volume, _ in doomed}
    where = next(iter(names)) if len(names) == 1 else count_text(len(names), "volume")
    sessions = count_text(len(doomed), "session")
    context.confirm_by_hand(f"Remove {sessions} of {where}? This cannot be undone.")


def _rules(options: argparse.Namespace) -> "Rules":
    from backup_vm.archive.notes import parse_tag
    from backup_vm.errors import UsageError
    from backup_vm.jobs.retention import DEFAULT, Rules

    given = {period: getattr(options, f"keep_{period}") or 0 for period in _PERIODS}
    rules = Rules(
        **given,
        within=options.keep_within or 0,
        tag=frozenset(parse_tag(tag) for tag in options.keep_tag or ()),
    )
    if options.keep_default and rules.any():
        raise UsageError("--keep-default cannot be combined with other rules")
    return DEFAULT if options.keep_default else rules


def judge(
    context: Context,
    archive: "Archive",
    volumes: "Sequence[Named]",
    chosen: "Sequence[Named]",
    rules: "Rules",
    until_free: str | None,
) -> "list[Verdict]":
    """A verdict on every session of the volumes chosen, by the rules given, else by those of the
    settings.
    """
    from backup_vm.errors import UsageError
    from backup_vm.jobs.thinning import by_rules, for_room, wanted_room
    from backup_vm.volumes import Named

    retention = context.settings.retention
    until_free = until_free or (retention.until_free if not rules.any() else None)

    def rules_for(volume: Named) -> "Rules":
        return rules if rules.any() else retention.rules_for(volume.qube, volume.volume)

    if not until_free and not rules.any() and not any(rules_for(one).any() for one in chosen):
        raise UsageError(
            "nothing says which sessions to keep",
            "give rules such as --keep-daily 7, --keep-default, or --session",
        )
    for volume in chosen:
        volume.notes_must_be_sound()
        if retention.by_name and not rules.any() and not volume.qube:
            raise UsageError(
                "the settings have rules for qubes by name, and which volume is which is not known",
                "give --passphrase-file or --agent, or rules on the command line",
            )
    verdicts = by_rules(chosen, rules_for)
    if not until_free:
        return verdicts
    tags = rules.tag.union(*(rules_for(volume).tag for volume in chosen))
    return for_room(archive, verdicts, wanted_room(archive, until_free), tags, volumes)


def _plan(verdicts: "Sequence[Verdict]") -> str:
    rows = [
        [
            v.volume.name,
            v.session.name,
            "keep" if v.keep else "remove",
            ", ".join(v.why) or "no rule keeps it",
        ]
        for v in verdicts
    ]
    return table([["VOLUME", "SESSION", "", "WHY"], *rows])


def remove(
    context: Context,
    archive: "Archive",
    doomed: "Sequence[tuple[Named, Session]]",
    dry_run: bool,
    verdicts: "Sequence[Verdict]" = (),
    entirely: frozenset[str] = frozenset(),
) -> int:
    """Prune sessions and report what was done, or what would be; returns the exit code.

    ``entirely``: ids of volumes of which nothing is to stay, damaged sessions included.
    """
    from backup_vm.archive.prune import Pruned, prune
    from backup_vm.archive.space import Account

    if dry_run:
        account = Account(archive, archive.sessions())
        done = Pruned(len(doomed), 0, account.comes_back({session.file for _, session in doomed}))
    else:
        done = prune(archive, [session for _, session in doomed], entirely)
    for reason in done.refused:
        context.warn(reason)
    code = Exit.DAMAGED if done.refused or archive.found else Exit.OK
    if context.json:
        names = [
            {"qube": v.qube, "volume": v.volume, "session": session.name} for v, session in doomed
        ]
        plan = [
            {
                "qube": v.volume.qube,
                "volume": v.volume.volume,
                "session": v.session.name,
                "keep": v.keep,
                "why": list(v.why),
            }
            for v in verdicts
        ]
        data = {"removed": names, "dry_run": dry_run, "chunks": done.chunks, "freed": done.space}
        context.result(data | ({"plan": plan} if verdicts else {}), "")
        return code
    if dry_run:
        if not verdicts:
            for volume, session in doomed:
                context.result({}, f"would remove {volume.name} {session.name}")
        context.result(
            {},
            f"{count_text(done.sessions, 'session')} would be removed, {size_text(done.space)}"
            " freed.",
        )
        return code
    left = set(archive.session_files())
    left = set(archive.session_files())
    for volume, session in doomed:
        if session.file not in left:
            context.say(f"removed {volume.name} {session.name}")
    context.say(f"{count_text(done.sessions, 'session')} removed, {size_text(done.space)} freed.")
    return code
