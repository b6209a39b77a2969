"""``sparsebak report``: the archive on one page of HTML that needs nothing else."""

import argparse
from typing import Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import key_option, path


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
        "-o", "--output", required=True, type=path, metavar="FILE", help="the page to write"
    )
    key_option(report)
    report.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    import time

    from backup_vm.cli.status import gather
    from backup_vm.reporting.page import page
    from backup_vm.terminal.output import replacing
    from common.durable import write_synced

    context = Context(options)
    with context.open() as archive:
        status, seen = gather(context, archive)
        data = [seen.volume_data(volume) for volume in seen.volumes]
        points = seen.account.growth() if seen.account else []
    text = page(status, data, points, int(time.time()))
    with replacing(options.output, public=True) as beside:
        write_synced(beside, text.encode())
    context.done({"page": str(options.output)}, f"{options.output} is written.")
    return 0
