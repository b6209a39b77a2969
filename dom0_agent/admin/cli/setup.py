# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak-agent setup BACKUP-VM``: make a Qubes machine ready: configuration, and the tags that
the policy goes by.
"""

import argparse
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from common.durable import make_directory, replace
from common.existing import exists
from common.text import printable
from dom0_agent.admin import policy
from dom0_agent.admin.catalog import ask, write_down
from dom0_agent.admin.cli import UserError
from dom0_agent.admin.qubes_catalog import documents_are_taken_down, lasts
from dom0_agent.admin.tags import TAG, VM_TAG
from dom0_agent.catalog import VolumeCatalog
from dom0_agent.config import Config, load
from dom0_agent.keyring import Keyring
from dom0_agent.qubesd import asking, connect
from wire.names import parse_name

_KEEPERS = frozenset({"AppVM", "StandaloneVM", "DispVM"})
"""Classes of qubes that can keep an archive, or have the disk that it is on; of disposables those
that last.
"""
_CONFIG = """# sparsebak's agent. All settings: /usr/share/doc/sparsebak-dom0/docs/agent.toml
state_dir = "/var/lib/sparsebak"
catalog = "qubes"

[qubes]
include = []              # names or @tag:NAME, besides those whose include_in_backups is on
exclude = []
running = "live"          # of running qubes this moment's state; "committed": their last start's
"""


def add_to(commands: Any) -> None:
    """Declare the command."""
    setup = commands.add_parser(
        "setup",
        help="on Qubes OS: name the backup VM and let it back up the qubes that 'volumes' lists",
        description=(
            "On Qubes OS: writes a configuration if there is none, and sets the tags that the"
            " policy goes by. Run it again whenever the configuration has changed."
        ),
    )
    setup.add_argument("backup_vm", metavar="BACKUP-VM", help="the qube that keeps the archive")
    setup.add_argument("-n", "--dry-run", action="store_true", help="only show what would be done")
    setup.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    name, done = parse_name(options.backup_vm, "qube"), _Doing(options.dry_run)
    with asking():
        app = connect()
        _require_keeper(app, name)
        if not exists(options.config):
            done(f"write {options.config}", lambda: _write_config(options.config))
            if options.dry_run:
                print(
                    "the tags of qubes depend on it; run again without --dry-run, or write it first"
                )
                return 0
        config = load(options.config)
        wanted, unsure = _wanted(ask(config, name))
        _tag_all(done, app, name, wanted, unsure)
    for qube, reason in unsure.items():
        print(printable(f"{qube}: {reason}; its tag was not changed; run this again"))
    not_saved = 0 if options.dry_run else _take_down(config)
    if policy.out_of_date():
        done(f"{_rules()} {policy.FOLDER / policy.OF_4_2}", policy.bring_up_to_date)
    for problem in policy.problems():
        print(problem)
    _tell_of_archives(config, name)
    print(
        f"{len(wanted)} qubes can be backed up by {name}."
        if done.count
        else f"Nothing to do: {name} may back up {len(wanted)} qubes."
    )
    print(
        f"Next, here: sparsebak-agent archive add LABEL --caller {name}; then in {name}: sparsebak"
        " init DIR --label LABEL"
    )
    return 1 if not_saved else 0


def _require_keeper(app: Any, name: str) -> None:
    """Raise UserError unless a qube can keep an archive."""
    klass = str(app.domains[name].klass) if name in app.domains else ""
    if klass not in _KEEPERS or not lasts(app.domains[name], klass):
        raise UserError(
            f"{name} is not a qube that could keep the archive; create one first, for example"
            " with qvm-create"
        )


def _wanted(catalog: VolumeCatalog) -> tuple[set[str], dict[str, str]]:
    """The qubes to be backed up, and those of which nobody could tell that, each with the
    reason.
    """
    failed = {skipped.name: skipped.reason for skipped in catalog.skipped() if skipped.failed}
    wanted = {volume.qube for volume in catalog.volumes()}
    wanted |= {name.partition("/")[0] for name in failed if "/" in name}
    return wanted - {"dom0"}, {name: why for name, why in failed.items() if "/" not in name}


def _tag_all(
    done: "_Doing", app: Any, name: str, wanted: Collection[str], unsure: Collection[str]
) -> None:
    """Tags of all qubes, ``name`` being the backup VM; of those that are ``unsure`` that one."""
    for domain in sorted(app.domains, key=lambda domain: str(domain.name)):
        if str(domain.klass) != "AdminVM":
            _tag(done, domain, VM_TAG, str(domain.name) == name)
            if str(domain.name) not in unsure:
                _tag(done, domain, TAG, str(domain.name) in wanted)


def _tell_of_archives(config: Config, name: str) -> None:
    """Which archives are for another backup VM: of one that was replaced they come along only when
    that is asked for.
    """
    for archive in Keyring(config.state_dir).readable():
        if archive.caller != name:
            print(
                f"Archive {archive.label} is for {archive.caller}; to let {name} have it:"
                f" sparsebak-agent archive caller {archive.label} {name}"
            )


def _rules() -> str:
    return "write" if policy.is_4_2() else "remove"


def _take_down(config: Config) -> int:
    """Write down what calls read: settings, where that is installed, and the list of volumes; how
    many settings could not be had.
    """
    failed = 0
    if documents_are_taken_down():
        from dom0_agent.admin.settings.collecting import collect_all

        for taken in collect_all(config):
            if taken.error:
                failed += 1
                print(printable(f"sparsebak-agent: {taken.name}: {taken.error}"), file=sys.stderr)
    write_down(config)
    return failed


def _tag(done: "_Doing", domain: Any, tag: str, wanted: bool) -> None:
    present = tag in domain.tags
    if wanted and not present:
        done(f"tag {domain.name} {tag}", lambda: domain.tags.add(tag))
    elif present and not wanted:
        done(f"remove tag {tag} from {domain.name}", lambda: domain.tags.remove(tag))


def _write_config(path: Path) -> None:
    make_directory(path.parent)
    replace(path, _CONFIG.encode())


class _Doing:
    """Does things, or only says them."""

    def __init__(self, dry_run: bool) -> None:
        self.dry_run, self.count = dry_run, 0

    def __call__(self, what: str, action: Any) -> None:
        """Say it, and do it unless it is a dry run."""
        self.count += 1
        print(f"would {what}" if self.dry_run else what)
        if not self.dry_run:
            action()
