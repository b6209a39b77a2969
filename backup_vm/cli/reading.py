# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of the commands that read images, and file systems in them."""

import argparse
import re

from backup_vm.cli.options import key_option


def reading_options(parser: argparse.ArgumentParser) -> None:
    """Declare --passphrase-file and --grant, and --from, for what takes an archive's place."""
    key_option(parser, grant=True)
    parser.add_argument(
        "--from",
        dest="source",
        metavar="QUBE",
        help="with --grant on Qubes OS: the backup VM to read from, in place of an archive",
    )


def partition_option(parser: argparse.ArgumentParser) -> None:
    """Declare --partition, for commands that read file systems."""
    parser.add_argument(
        "--partition",
        type=_partition,
        metavar="N",
        help=(
            "which partition, or GROUP/VOLUME of LVM (default: the only one with a file system"
            " that can be read, or the only one beside FAT)"
        ),
    )


def _partition(text: str) -> int | str:
    """A partition's number, or the name of a logical volume."""
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else text
