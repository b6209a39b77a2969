# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak report``: the archive on one page of HTML that needs nothing else."""

import argparse
from typing import Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import key_option
from backup_vm.cli.writing import output_path


def add_to(commands: Any) -> None:
    """Declare the command."""
    report = commands.add_parser(
        "report",
        help="write a page of HTML: sessions by day, growth, health",
        description=(
            "Writes one page of HTML that needs no network and no script. It names qubes: keep it"
            " where their names may be known."
        ),
    )
    report.add_argument(
        "-o",
        "--output",
        required=True,
        type=output_path,
        metavar="FILE",
        help="the page to write; - is standard output",
    )
    key_option(report)
    report.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    import time

    from backup_vm.errors import UsageError
    from backup_vm.reporting import status
    from backup_vm.reporting.page import page
    from backup_vm.terminal.output import put_bytes, write_page

    context = Context(options)
    if context.json and options.output is None:
        raise UsageError("a page is not JSON", "with --json give -o FILE")
    with context.open() as archive:
        row, seen = status.look(archive, *context.listed(archive), context.keys(archive), None)
        volumes = [seen.row(volume) for volume in seen.volumes]
        points = seen.account.growth() if seen.account else []
    text = page(row, volumes, points, int(time.time()))
    if options.output is None:
        put_bytes(text.encode())
        return 0
    write_page(options.output, text)
    context.done({"page": str(options.output)}, f"{options.output} is written.")
    return 0
