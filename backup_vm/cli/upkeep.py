# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak upkeep``: keep all archives beneath a place. Needs no key and no agent."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import dry_run_option, given, part_options, path, rate_option
from backup_vm.cli.writing import file_path
from backup_vm.errors import SparsebakError, UsageError
from backup_vm.paths import expanded
from common.existing import exists

if TYPE_CHECKING:
    from backup_vm.jobs.upkeep.plan import Setup
    from backup_vm.reporting.kept_rows import KeptRow, UpkeepRow
    from backup_vm.terminal.progress import Progress


def add_to(commands: Any) -> None:
    """Declare the command."""
    upkeep = commands.add_parser(
        "upkeep",
        help="keep all archives beneath a place: prune, scrub a share, check age, copy, report",
        description=(
            "Finds all archives beneath a place, and prunes and scrubs each, checks how old its"
            " newest session is and brings its copy up to date, by rules of its own settings file."
            " Needs no key. What is wrong with one archive keeps no other from being kept; those"
            " that were kept least recently come first."
        ),
    )
    upkeep.add_argument(
        "place",
        nargs="?",
        type=given,
        metavar="PLACE",
        help="a folder or URL (default: that of the rules)",
    )
    upkeep.add_argument(
        "--rules",
        type=path,
        metavar="FILE",
        help="what is to be done (default: upkeep.toml beside the settings file)",
    )
    upkeep.add_argument(
        "--copy-to", type=given, metavar="PLACE", help="where copies of the archives are"
    )
    upkeep.add_argument("--report", type=file_path, metavar="FILE", help="a page of HTML to write")
    upkeep.add_argument(
        "--metrics",
        type=path,
        metavar="FILE",
        help="write metrics to FILE, a name in .prom, for Prometheus' textfile collector",
    )
    rate_option(upkeep)
    part_options(upkeep, "packs", "checked")
    dry_run_option(upkeep, "change nothing, and only show what would be done")
    upkeep.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.jobs.upkeep.rounds import Audience, upkeep
    from backup_vm.reporting.kept_rows import line

    context = Context(options)
    setup = _setup(context)

    def begins(number: int, total: int, name: str) -> "Progress":
        return context.bar(f"{number + 1} of {total} {name}")

    def ended(row: "KeptRow") -> None:
        if not context.json:
            context.say(line(row, options.dry_run))
        for text in row["problems"]:
            context.warn(f"{row['name']}: {text}")
        for text in row["notes"]:
            context.say(f"{row['name']}: {text}")

    done = upkeep(setup, Audience(begins, ended), options.dry_run)
    for problem in done["problems"]:
        context.warn(problem)
    written = options.dry_run or _told(context, setup, done)
    kept = sum(row["kept"] >= done["begun"] for row in done["archives"])
    context.done(done, f"{kept} of {len(done['archives'])} archives kept at {setup.place}.")
    return done["exit"] or int(not written)


def _setup(context: Context) -> "Setup":
    """What is to be done: options before the file."""
    from backup_vm.jobs.upkeep.plan import Setup, load

    options, settings = context.options, context.settings_file()
    file: Path | None = options.rules or (settings and settings.with_name("upkeep.toml"))
    setup = Setup()
    if file is not None and (options.rules or exists(file)):
        setup = load(file)
    place = options.place or setup.place
    if not place:
        raise UsageError("no place was named", "name the folder or URL that archives are beneath")
    if options.sample or options.older_than:
        setup = setup.scrubbing(options.sample, options.older_than)
    return replace(
        setup,
        place=context.location(place),
        copy_to=expanded(options.copy_to or "") or setup.copy_to,
        report=str(options.report or setup.report),
        metrics=str(options.metrics or setup.metrics),
        limit_rate=options.limit_rate or setup.limit_rate,
    )


def _told(context: Context, setup: "Setup", done: "UpkeepRow") -> bool:
    """Write page and metrics; whether both could be. One that cannot is no reason not to write the
    other.
    """
    from backup_vm.reporting import kept_page, metrics
    from backup_vm.terminal.output import write_page

    written = True
    if setup.report:
        try:
            write_page(Path(setup.report), kept_page.page(done))
        except (OSError, SparsebakError) as error:
            context.warn(f"the report was not written: {error}")
            written = False
    if setup.metrics:
        try:
            metrics.write(setup.metrics, metrics.of_upkeep(done))
        except SparsebakError as error:
            context.warn(f"the metrics were not written: {error}")
            written = False
    return written
