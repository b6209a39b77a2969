# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of commands that write a file: where to, and whether standard output can take its
place.
"""

import argparse
from pathlib import Path
from typing import Any

from backup_vm.cli.options import path


def output_path(text: str) -> Path | None:
    """A file to write, as an option's value; None for ``-``, which is standard output."""
    return None if text == "-" else path(text)


def file_path(text: str) -> Path:
    """A file for what cannot go to standard output: never one that is called ``-`` unasked."""
    if text == "-":
        raise argparse.ArgumentTypeError(
            "what is written has its name only when it is whole, and cannot go to standard"
            " output; name a file (./- for one of that name)"
        )
    return path(text)


def output_options(parser: argparse.ArgumentParser, metavar: str, what: str) -> Any:
    """Declare -o and --force, for commands that write one file; the group that -o is in."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "-o", "--output", type=file_path, metavar=metavar, help=f"the {what} to write"
    )
    _force_option(parser, what)
    return where


def _force_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--force", action="store_true", help=f"replace {_an(what)} that exists")


def stream_options(parser: argparse.ArgumentParser, metavar: str, what: str) -> None:
    """Declare -o and --force, for commands that write one file, or to standard output."""
    help = f"the {what} to write; - is standard output"
    parser.add_argument(
        "-o", "--output", required=True, type=output_path, metavar=metavar, help=help
    )
    _force_option(parser, what)


def _an(what: str) -> str:
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what}"
