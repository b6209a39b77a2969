# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak open``: mount the sessions of a grant in a disposable; what the service
sparsebak.Open runs.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from backup_vm.cli.context import Context


def add_to(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "open",
        help="mount the sessions of a grant in a disposable; on Qubes OS a service runs this",
        description=(
            "Takes a grant on standard input, as root in a disposable, and mounts the file systems"
            " of its sessions below /mnt/sparsebak, read-only. Sealed chunks come from the backup"
            " VM. It is what the service sparsebak.Open runs, which 'sparsebak-agent open' calls."
        ),
    )
    command.add_argument("qube", metavar="BACKUP-VM", help="the qube to read from")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command. Whatever goes wrong, dom0 is told by a code."""
    from backup_vm.errors import SparsebakError, UsageError, WrongKeyError
    from backup_vm.jobs.opening import NotOpened, opened
    from backup_vm.unsealing import read_grant
    from wire.messages import Status
    from wire.names import BadName, parse_name
    from wire.status import Code
    from wire.stream import send

    out, context = sys.stdout.buffer, Context(options)
    try:
        try:
            qube = parse_name(options.qube, "qube")
        except BadName as error:
            raise UsageError(str(error)) from None
        if os.geteuid() != 0:
            raise UsageError("only root can mount", "it is for a disposable; see: sparsebak mount")
        opened(qube, read_grant(Path("-")), context.warn)
    except SparsebakError as error:
        code = Code.BAD_REQUEST if isinstance(error, UsageError | WrongKeyError) else Code.INTERNAL
        send(out, Status(error.status if isinstance(error, NotOpened) else code))
        out.flush()
        raise
    send(out, Status(Code.OK))
    out.flush()
    return 0
