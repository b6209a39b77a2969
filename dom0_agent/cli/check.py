"""``sparsebak-agent check``: whether every volume has a session that is young enough; for a timer, with a notification."""

import argparse
import json
import sys
import time
from typing import Any

from dom0_agent.archives import Archives
from dom0_agent.catalog import open_catalog
from dom0_agent.catalog.tags import untagged
from dom0_agent.config import Config, Volume, load
from dom0_agent.notify import notify
from dom0_agent.state import Follow, Store
from wire.names import printable, session_name
from wire.status import Refused


def add_to(commands: Any) -> None:
    """Declare the command."""
    check = commands.add_parser(
        "check", help="say which volumes have no backup within some days; exit code 1 if any"
    )
    check.add_argument(
        "--days",
        type=float,
        default=7.0,
        metavar="N",
        help="how old a backup may be (default: %(default)g)",
    )
    check.add_argument(
        "--caller",
        default="",
        metavar="NAME",
        help="as it is for this backup VM, whose own volumes do not count",
    )
    check.add_argument("--notify", action="store_true", help="with a notification on the desktop")
    check.add_argument("-q", "--quiet", action="store_true")
    check.add_argument("--json", action="store_true")
    check.set_defaults(run=_run)


def _expected(config: Config, caller: str) -> list[Volume]:
    """The volumes that every backup VM is to back up: all but the backup VMs' own."""
    callers = (
        [caller]
        if caller
        else sorted({archive.caller for archive in Archives(config.state_dir).readable()}) or [""]
    )
    listed = [
        {volume.name: volume for volume in open_catalog(config, one).volumes()} for one in callers
    ]
    return [
        volume for name, volume in listed[0].items() if all(name in others for others in listed)
    ]


def _run(options: argparse.Namespace) -> int:
    config = load(options.config)
    limit, late = time.time() - options.days * 86400, list[tuple[str, int]]()
    for volume in _expected(config, options.caller):
        try:
            follows = Store(config.state_dir, volume.qube, volume.volume).load().follows.values()
        except Refused as error:  # nobody knows of a backup of this one
            print(f"sparsebak-agent: {printable(str(error))}", file=sys.stderr)
            follows = dict[str, Follow]().values()
        newest = max((follow.committed.time for follow in follows if follow.committed), default=0)
        if newest < limit:
            late.append((volume.name, newest))
    vm, new = untagged(config) if late else ("", [])
    refused = {str(domain.name) for domain in new}
    if options.json:
        print(
            json.dumps(
                {
                    "late": [
                        {
                            "volume": name,
                            "newest": session_name(at) if at else None,
                            "refused": name.partition("/")[0] in refused,
                        }
                        for name, at in late
                    ]
                }
            )
        )
    elif late:
        for name, at in late:
            print(
                f"{name}: {f'last backup {session_name(at)}' if at else 'never backed up'}",
                file=sys.stderr,
            )
        if refused:
            print(
                f"{', '.join(sorted(refused))}: new since setup, so that policy refuses {vm}; run: sparsebak-agent setup {vm}",
                file=sys.stderr,
            )
    elif not options.quiet:
        print(f"Every volume has a backup of the last {options.days:g} days.")
    if late and options.notify:
        notify(
            "Backup is late",
            f"{len(late)} volumes have no backup of the last {options.days:g} days.",
            urgent=True,
        )
    return 1 if late else 0
