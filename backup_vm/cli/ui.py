# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak ui``: the archive in a browser."""

import argparse
import os
from importlib import import_module
from typing import Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import key_option
from backup_vm.errors import SparsebakError
from backup_vm.terminal import output
from common.existing import is_file


def add_to(commands: Any) -> None:
    """Declare the command."""
    ui = commands.add_parser(
        "ui",
        help="show the archive and work with it in a browser",
        description=(
            "Serves a page on loopback to this user's browser, and opens it: overview, sessions"
            " through time, backup, restore, prune with a simulator, space, files. All work is done"
            " by the commands of this program, one at a time. Ends with Ctrl-C."
        ),
    )
    ui.add_argument(
        "--no-open",
        action="store_true",
        help="print the address, which works once and for five minutes, and open nothing",
    )
    ui.add_argument(
        "--port", type=_port, default=0, metavar="N", help="the port (default: any that is free)"
    )
    key_option(ui)
    ui.set_defaults(run=run)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Run the command; a signal is how it is meant to end."""
    _require_aiohttp()
    from backup_vm.ui.api import Api
    from backup_vm.ui.guard import Guard
    from backup_vm.ui.opening import Entrance
    from backup_vm.ui.program import Program
    from backup_vm.ui.server import listen, serve

    context = Context(options)
    program = Program(_general(options), _key_file(options))
    listening = listen(options.port)
    guard = Guard(listening.getsockname()[1], os.getuid())
    entrance = None if options.no_open else Entrance(guard.url)

    def opened(used: bool) -> None:
        if used:
            if entrance is not None:
                entrance.remove()
        elif entrance is None:
            output.put(guard.url)
            output.flush()
        else:
            entrance.open()
            context.say("The page opens in the browser; end with Ctrl-C.")

    try:
        serve(listening, guard, lambda: Api(program, context.config.pruning), opened)
    finally:
        if entrance is not None:
            entrance.remove()
        listening.close()
    return 0


def _require_aiohttp() -> None:
    """The one library that no other command needs."""
    try:
        import_module("backup_vm.ui.server")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "aiohttp":
            raise
        raise SparsebakError(
            "the Python module aiohttp is not installed",
            "install it: apt-get install python3-aiohttp (Debian), dnf install python3-aiohttp"
            " (Fedora)",
        ) from None


def _key_file(options: argparse.Namespace) -> str | None:
    """A file with the passphrase, which commands read again and again; a pipe could be read
    once.
    """
    file = options.passphrase_file
    if file is not None and not is_file(file):
        raise SparsebakError(f"{file} is not a regular file", "or type the passphrase in the page")
    return file and str(file.absolute())


def _general(options: argparse.Namespace) -> tuple[str, ...]:
    """The general options as given, for every command that the page runs."""
    return tuple(
        f"--{name.replace('_', '-')}={value}"
        for name in ("agent", "archive", "as_of", "config", "require_mount", "caller")
        if (value := getattr(options, name)) is not None
    )
