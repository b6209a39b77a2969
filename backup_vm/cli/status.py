# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak status``: the archive at a glance, what has changed since in each volume, and whether
all is well.
"""

import argparse
from typing import Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import key_option, path, space_option


def add_to(commands: Any) -> None:
    """Declare the command."""
    status = commands.add_parser(
        "status",
        help="show the archive, what changed since the last backup, and its health",
        description=(
            "Shows the archive at a glance: space, last checks, and of each volume its newest"
            " session and how much has changed since."
        ),
    )
    space_option(status)
    status.add_argument(
        "--metrics",
        type=path,
        metavar="FILE",
        help="write metrics to FILE, a name in .prom, for Prometheus' textfile collector",
    )
    key_option(status)
    status.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.reporting import metrics, status

    context = Context(options)
    with context.open() as archive:
        row, seen = status.look(
            archive, *context.listed(archive), context.keys(archive), options.space
        )
        growth = seen.account.growth() if context.json and seen.account else None
    if options.metrics is not None:
        metrics.write(str(options.metrics), metrics.of_archive(row))
        context.done({"metrics": str(options.metrics)}, f"{options.metrics} is written.")
    else:
        context.result({**row, "growth": growth}, status.text(row))
    return 0
