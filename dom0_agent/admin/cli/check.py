# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak-agent check``: whether every volume has a session that is young enough; for a timer,
with a notification.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from common.text import printable, reason, session_name
from dom0_agent.admin.catalog import ask
from dom0_agent.admin.tags import untagged
from dom0_agent.catalog import Skipped
from dom0_agent.config import Config, ConfigError, Volume, load
from dom0_agent.keyring import Keyring
from dom0_agent.notify import notify
from dom0_agent.tracking.state import VolumeState
from wire.status import Refused


def add_to(commands: Any) -> None:
    """Declare the command."""
    check = commands.add_parser(
        "check",
        help="report volumes without a recent backup; exit code 1 if there are any",
        description=(
            "Reports the volumes that have no backup of the last days, and exits with 1 if there"
            " are any."
        ),
    )
    check.add_argument(
        "--days",
        type=_days,
        default=7.0,
        metavar="N",
        help="how many days old a backup may be (default: %(default)g)",
    )
    check.add_argument(
        "--caller",
        default="",
        metavar="NAME",
        help="check as seen by this backup VM, whose own volumes do not count",
    )
    check.add_argument("--notify", action="store_true", help="also notify on the desktop")
    check.set_defaults(run=_run)


def _days(text: str) -> float:
    days = float(text)
    if not 0 < days < 36500:  # nothing is older than "nan", or "inf"
        raise ValueError(text)
    return days


def _expected(config: Config, caller: str) -> tuple[list[Volume], list[Skipped]]:
    """The volumes that every backup VM is to back up, all but the backup VMs' own, and those that
    nobody can tell of, or that sparsebak cannot back up.
    """
    callers = (
        [caller]
        if caller
        else sorted({archive.caller for archive in Keyring(config.state_dir).readable()}) or [""]
    )
    catalogs = [ask(config, one) for one in callers]
    listed = [{volume.name: volume for volume in catalog.volumes()} for catalog in catalogs]
    expected = [
        volume for name, volume in listed[0].items() if all(name in others for others in listed)
    ]
    left_out = [one for one in catalogs[0].skipped() if one.failed or one.unsupported]
    return expected, left_out


def _run(options: argparse.Namespace) -> int:
    try:
        return _check(options, load(options.config))
    except (ConfigError, OSError, Refused) as error:
        if options.notify:  # that nobody can tell is no good news
            notify("Backups cannot be checked", printable(reason(error)), urgent=True)
        raise


def _check(options: argparse.Namespace, config: Config) -> int:
    expected, failed = _expected(config, options.caller)
    for one in failed:
        print(f"sparsebak-agent: {printable(f'{one.name}: {one.reason}')}", file=sys.stderr)
    late = [(one.name, 0) for one in failed]
    late += _late(config, expected, options.days * 86400)
    vm, new = untagged(config) if late else ("", [])
    refused = {str(domain.name) for domain in new}
    if options.json:
        print(json.dumps({"late": _listed(late, refused)}))
    elif late:
        _tell(late, {one.name for one in failed}, vm, refused)
    elif not options.quiet:
        print(f"Every volume has a backup of the last {options.days:g} days.")
    if late and options.notify:
        notify(
            "Backup is late",
            f"{len(late)} volumes have no backup of the last {options.days:g} days.",
            urgent=True,
        )
    return 1 if late else 0


def _late(config: Config, expected: list[Volume], age: float) -> Iterator[tuple[str, int]]:
    """The volumes without a session of the last ``age`` seconds, and when their newest was made (0
    for none).
    """
    now = time.time()
    for volume in expected:
        try:
            follows = VolumeState.of(config.state_dir, volume).load().follows.values()
        except Refused as error:  # nobody knows of a backup of this one
            print(f"sparsebak-agent: {printable(str(error))}", file=sys.stderr)
            yield volume.name, 0
            continue
        newest = max(
            (progress.committed.time for progress in follows if progress.committed), default=0
        )
        # One of a day to come was made while the clock was wrong, nobody knows when.
        if not now - age <= newest <= now + 86400:
            yield volume.name, newest


def _listed(late: list[tuple[str, int]], refused: set[str]) -> list[dict[str, object]]:
    """For ``--json``."""
    return [
        {
            "volume": name,
            "newest": session_name(when) if when else None,
            "refused": name.partition("/")[0] in refused,
        }
        for name, when in late
    ]


def _tell(late: list[tuple[str, int]], untold: set[str], vm: str, refused: set[str]) -> None:
    for name, when in late:
        if name in untold:
            continue
        last = f"last backup {session_name(when)}" if when else "never backed up"
        print(f"{name}: {last}", file=sys.stderr)
    if refused:
        print(
            f"{', '.join(sorted(refused))}: new since setup, so that policy refuses {vm}; run:"
            f" sparsebak-agent setup {vm}",
            file=sys.stderr,
        )
