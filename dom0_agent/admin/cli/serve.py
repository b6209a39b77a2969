# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak-agent serve``: the resident agent, so that a call costs milliseconds; started by
systemd for the first call.
"""

import argparse
from pathlib import Path
from typing import Any

from dom0_agent.admin.cli import UserError


def add_to(commands: Any) -> None:
    """Declare the command."""
    serve = commands.add_parser(
        "serve",
        help="answer calls on sockets, in milliseconds; systemd starts it for the first one",
        description=(
            "Answers calls on sockets, in milliseconds. On Qubes OS systemd starts it at the first"
            " call."
        ),
    )
    serve.add_argument(
        "--listen",
        type=Path,
        metavar="DIR",
        help="create the sockets in this folder (default: those of systemd)",
    )
    serve.add_argument(
        "--idle",
        type=float,
        metavar="SECONDS",
        help="exit after so many seconds without a call; 0: never",
    )
    serve.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from dom0_agent.admin.serving import listening, preload, serve
    from dom0_agent.rpc.resident import IDLE

    sockets = listening(options.listen)
    if not sockets:
        raise UserError(
            "systemd handed over no sockets; start sparsebak-agent.socket, or give --listen DIR"
        )
    idle = options.idle if options.idle is not None else (None if options.listen else IDLE)
    preload(options.config)
    serve(sockets, options.config, idle or None)
    return 0
