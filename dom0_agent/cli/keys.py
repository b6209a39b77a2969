"""``sparsebak-agent keys import``: take over an archive that another dom0 made, with its passphrase or recovery key."""

import argparse
from pathlib import Path
from typing import Any

from dom0_agent.archives import Archives
from dom0_agent.cli import UserError
from dom0_agent.cli.archive import ask_secret, read_secret
from dom0_agent.config import load
from dom0_agent.takeover import read, take_over, unlock
from wire.frames import MODE_OPEN
from wire.names import parse_name


def add_to(commands: Any) -> None:
    """Declare the command."""
    keys = commands.add_parser("keys", help="take over an archive from another dom0")
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    take = actions.add_parser("import", help="from a file that 'sparsebak keys' wrote in the backup VM")
    take.add_argument("label", metavar="LABEL")
    take.add_argument("file", type=Path, metavar="FILE")
    take.add_argument("--caller", required=True, metavar="NAME", help="the backup VM that may use the archive")
    take.add_argument("--passphrase-file", type=Path, metavar="F", help="passphrase or recovery key, in a file's first line")
    take.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    state_dir = load(options.config).state_dir
    label, caller = parse_name(options.label, "label"), parse_name(options.caller, "caller")
    if Archives(state_dir).by_label(label) is not None:
        raise UserError(f"there is an archive labelled {label} already; choose another label")
    introduction = read(options.file)
    secret = b""
    if introduction.untrusted_entry.mode != MODE_OPEN:
        secret = read_secret(options.passphrase_file) if options.passphrase_file else ask_secret("Passphrase or recovery key: ")
    archive, volumes = take_over(state_dir, introduction, label, caller, unlock(introduction, secret))
    print(f"Archive {label} ({archive.id.hex()}) is known here now, with {len(volumes)} volumes:")
    for name in sorted(volumes):
        print(f"    {name}")
    print(f"In {caller}: sparsebak restore QUBE")
    return 0
