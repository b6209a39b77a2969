# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak prune``: remove sessions by name, by rules, or until there is room; all others stay
whole.
"""

import argparse
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import (
    checked,
    dry_run_option,
    duration,
    given,
    guard_options,
    key_option,
    wait_option,
    yes_option,
)

if TYPE_CHECKING:
    from backup_vm.jobs.keep_rules import Rules
    from backup_vm.jobs.removal import Removal
    from backup_vm.volumes import Contents

_PERIODS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


def add_to(commands: Any) -> None:
    """Declare the command."""
    prune = commands.add_parser(
        "prune",
        help="remove sessions and reclaim their space",
        description=(
            "Removes sessions: those named, or all that no rule keeps. Without either, the rules in"
            " the settings file apply. A session is kept if any rule keeps it; the newest of a"
            " volume always is, and so are new ones. A volume of which too much would go at once is"
            " left as it is. On a terminal, asks before anything is removed."
        ),
    )
    prune.add_argument(
        "volumes", nargs="*", metavar="QUBE[/VOLUME]", help="whose sessions (default: all volumes)"
    )
    prune.add_argument(
        "--session",
        action="append",
        type=given,
        metavar="S",
        help="remove this one; can be repeated",
    )
    _rule_options(prune)
    guard_options(prune)
    dry_run_option(prune, "only show what would stay, why, and what would go")
    yes_option(prune)
    key_option(prune)
    wait_option(prune)
    prune.set_defaults(run=run)


def _rule_options(prune: argparse.ArgumentParser) -> None:
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
        type=duration,
        metavar="TIME",
        help="keep all of the last TIME, such as 2d, 3w or 1y6m",
    )
    prune.add_argument(
        "--keep-tag",
        action="append",
        metavar="TAG",
        help="keep those with this tag; can be repeated",
    )
    prune.add_argument(
        "--keep-default",
        action="store_true",
        help="keep all of the last day, daily for 30 days, weekly after",
    )
    prune.add_argument(
        "--until-free",
        type=given,
        metavar="ROOM",
        help="then remove the oldest until 10%% of the disk, or 20G, are free",
    )


def _plural(period: str) -> str:
    return {"hourly": "hours", "daily": "days"}.get(period, period.removesuffix("ly") + "s")


def _count(text: str) -> int:
    from backup_vm.jobs.keep_rules import parse_count

    return checked(parse_count)(text)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.cli.removing import foresee, remove
    from backup_vm.errors import UsageError

    context = Context(options)
    rules = _rules(options)
    if options.session:
        guarded = options.max_removed is not None or options.min_age is not None
        if rules.any() or options.until_free or guarded:
            raise UsageError(
                "--session names what goes, and rules say what stays: give one of the two"
            )
        if not options.volumes:
            raise UsageError(
                "say of which volumes the session is to be removed",
                "for all of them name each qube",
            )
    with context.contents(writing=not options.dry_run) as contents:

        def chosen(now: "Contents") -> "tuple[Removal, list[str]]":
            removal = _chosen(context, now, rules)
            return removal, removal.spoilt()

        if options.dry_run:
            return foresee(context, contents, chosen)
        removal, lines = chosen(contents)
        for line in lines:
            context.warn(line)
        if removal.doomed:
            context.confirm_by_hand(removal.question())
        return remove(context, removal)


def _chosen(context: Context, contents: "Contents", rules: "Rules") -> "Removal":
    from backup_vm.jobs.guard import Guard
    from backup_vm.jobs.removal import Removal
    from backup_vm.jobs.thinning import judge

    options, archive = context.options, contents.archive
    chosen = contents.select(*options.volumes)
    if options.session:
        found = [(one, contents.find(one, name)) for one in chosen for name in options.session]
        named = {session.file: (one, session) for one, session in found}  # two may mean the same
        return Removal(archive, contents.volumes, list(named.values()))
    pruning = context.config.pruning
    guard = Guard(options.max_removed, options.min_age).over(pruning.guard)
    verdicts = judge(contents, chosen, pruning, rules, options.until_free, guard)
    doomed = [(verdict.volume, verdict.session) for verdict in verdicts if not verdict.keep]
    return Removal(archive, contents.volumes, doomed, verdicts, min_age=guard.seconds)


def _rules(options: argparse.Namespace) -> "Rules":
    from backup_vm.archive.notes import parse_tag
    from backup_vm.errors import UsageError
    from backup_vm.jobs.keep_rules import DEFAULT, Rules

    given = {period: getattr(options, f"keep_{period}") or 0 for period in _PERIODS}
    rules = Rules(
        **given,
        within=options.keep_within or 0,
        tag=frozenset(parse_tag(tag) for tag in options.keep_tag or ()),
    )
    if options.keep_default and rules.any():
        raise UsageError("--keep-default cannot be combined with other rules")
    return DEFAULT if options.keep_default else rules
