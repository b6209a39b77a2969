# SPDX-License-Identifier: GPL-2.0-or-later
"""--pack-size, of the commands that store chunks."""

import argparse
from typing import TYPE_CHECKING

from backup_vm.cli.options import checked

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive
    from backup_vm.cli.context import Context


def pack_size_option(parser: argparse.ArgumentParser) -> None:
    """Declare --pack-size."""
    parser.add_argument(
        "--pack-size",
        type=_pack_size,
        metavar="SIZE",
        help="bytes of a new pack, from 4M to 512M (default: as suits the archive's size)",
    )


def use_pack_size(context: "Context", archive: "Archive") -> None:
    """Make packs of the size that --pack-size or the settings name, if they do."""
    archive.pack_size = context.options.pack_size
    if archive.pack_size is None and "pack_size" in context.config.texts:
        from backup_vm.archive.pack_size import parse_pack_size

        archive.pack_size = parse_pack_size(context.config.texts["pack_size"])


@checked
def _pack_size(text: str) -> int:
    from backup_vm.archive.pack_size import parse_pack_size

    return parse_pack_size(text)
