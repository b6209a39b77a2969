# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak-agent monitor``: replace the base snapshots, of the volumes named or of all."""

import argparse
import json
import sys
from typing import Any

from common.text import printable, reason
from dom0_agent.admin import last_backup
from dom0_agent.admin.archives import sweep
from dom0_agent.admin.catalog import current
from dom0_agent.admin.cli import UserError, mib
from dom0_agent.admin.leftovers import drop_in_former_pools, let_go, let_start, orphans
from dom0_agent.admin.monitoring import Outcome, monitor
from dom0_agent.admin.tags import tag_new
from dom0_agent.catalog import VolumeCatalog
from dom0_agent.config import Config, Volume, load
from dom0_agent.keyring import Keyring
from dom0_agent.log import INFO, log
from dom0_agent.sources import Sources
from wire.names import parse_name, parse_volume_name
from wire.status import Code, Refused


def add_to(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "monitor",
        help="record changed blocks and drop old snapshots",
        description=(
            "Records which blocks of each volume changed since the last run, and frees the space"
            " that old snapshots hold. A timer runs it every ten minutes."
        ),
    )
    command.add_argument(
        "volumes", nargs="*", metavar="QUBE[/VOLUME]", help="which volumes (default: all)"
    )
    command.add_argument(
        "-v", "--verbose", action="store_true", help="print a line for each volume"
    )
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    config = load(options.config)
    keyring = Keyring(config.state_dir)
    (catalog, listed), outcomes = current(config), list[Outcome]()
    for outcome in monitor(config.state_dir, select(catalog, options.volumes), keyring):
        outcomes.append(outcome)
        if outcome.error and not outcome.busy:
            print(f"sparsebak-agent: {printable(outcome.error)}", file=sys.stderr)
        elif options.verbose and not options.json:
            print(f"{outcome.name}: {_words(outcome)}")
    rest: dict[str, list[str]] = {"let_go": [], "new": [], "noted": [], "unfinished": []}
    if not options.volumes:
        rest["let_go"] = _let_go(config, catalog)
        rest["new"] = tag_new(config)
        rest["noted"] = last_backup.note(config, catalog)
        rest["unfinished"] = _remove_unfinished(config)
        let_start(config.state_dir)
        sweep(keyring)
    _report(options, outcomes, rest)
    failed = any(outcome.error and not outcome.busy for outcome in outcomes)
    return 1 if failed or not listed else 0


def _report(
    options: argparse.Namespace, outcomes: list[Outcome], rest: dict[str, list[str]]
) -> None:
    """Say what became of the volumes, and as JSON of the ``rest``: names of volumes, qubes and
    disposables by what was done with them.
    """
    if options.json:
        fields = [
            {
                "volume": outcome.name,
                "changed": outcome.changed,
                "busy": outcome.busy,
                "error": outcome.error,
            }
            for outcome in outcomes
        ]
        print(json.dumps({"volumes": fields, **rest}))
    elif not options.quiet:
        changed = [outcome.changed for outcome in outcomes if outcome.changed is not None]
        busy = sum(outcome.busy for outcome in outcomes)
        skipped = f", {busy} busy and left for the next time" if busy else ""
        print(
            f"{len(changed)} of {len(outcomes)} volumes followed, {mib(sum(changed))}"
            f" changed{skipped}"
        )


def _let_go(config: Config, catalog: VolumeCatalog) -> list[str]:
    """Names of the volumes that are gone and had snapshots."""
    gone, sources = [], Sources(config.state_dir)
    for name in drop_in_former_pools(config.state_dir, sources):
        log(INFO, f"{name} is in another pool now; its snapshots in the one before are removed")
    for orphan in orphans(config.state_dir, catalog):
        try:
            if let_go(orphan, sources):
                gone.append(orphan.name)
                log(
                    INFO,
                    f"{orphan.name} is not backed up any more; its snapshots are removed. What is"
                    " known of its sessions is kept; to drop that, too: sparsebak-agent forget"
                    f" {orphan.name}",
                )
        except (Refused, OSError) as error:
            if not (isinstance(error, Refused) and error.code == Code.BUSY):
                text = printable(reason(error))
                print(f"sparsebak-agent: {orphan.name}: {text}", file=sys.stderr)
    return gone


def _remove_unfinished(config: Config) -> list[str]:
    """Names of disposables that an ``open`` which was killed had begun; its user is notified."""
    from dom0_agent.admin import unfinished
    from dom0_agent.notify import notify

    names = unfinished.sweep(config.state_dir)
    for name in names:
        why = "'sparsebak-agent open' was killed before it showed anything"
        log(INFO, f"{name} is removed: {why}")
        notify("Disposable removed", f"{name} is removed: {why}. Open it again.")
    return names


def _words(outcome: Outcome) -> str:
    if outcome.busy:
        return "busy, left for the next time"
    return (
        "no archive has a session of it"
        if outcome.changed is None
        else f"{mib(outcome.changed)} changed"
    )


def select(catalog: VolumeCatalog, names: list[str]) -> list[Volume]:
    """The volumes that the names stand for; every volume when there are none."""
    if not names:
        return list(catalog.volumes())
    chosen: list[Volume] = []
    for name in names:
        if "/" in name:
            qube, volume = parse_volume_name(name)
            found = [v for v in catalog.volumes() if (v.qube, v.volume) == (qube, volume)]
        else:
            qube = parse_name(name, "qube")
            found = [v for v in catalog.volumes() if v.qube == qube]
        if not found:
            raise UserError(f"there is no volume {name}; see: sparsebak-agent volumes")
        chosen += [v for v in found if v not in chosen]
    return chosen
