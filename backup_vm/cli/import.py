# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak import``: take a session in that ``sparsebak export`` wrote."""

import argparse
from typing import Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import key_option, path
from backup_vm.cli.pack_size import pack_size_option, use_pack_size
from backup_vm.paths import open_regular


def add_to(commands: Any) -> None:
    """Declare the command."""
    take = commands.add_parser(
        "import",
        help="store a session that export wrote from a copy of this archive",
        description=(
            "Stores a session that export wrote. It must come from an archive of the same key:"
            " this one, or a copy of it. Give the passphrase to have it proven authentic first;"
            " without it, run verify afterwards."
        ),
    )
    take.add_argument("file", type=path, metavar="FILE", help="a file that export wrote")
    key_option(take)
    pack_size_option(take)
    take.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.jobs.export import read_head, take_in
    from common.text import session_name
    from wire.merkle import chunk_count

    context = Context(options)
    with open_regular(options.file) as stream, context.open(writing=True) as archive:
        use_pack_size(context, archive)
        clear = read_head(stream, options.file)[2]
        stream.seek(0)
        read_twice = 2 * chunk_count(clear.size, clear.chunk_size) * clear.chunk_size
        with context.progress("import", read_twice) as progress:
            take_in(archive, stream, options.file, progress, context.keys(archive))
    name = session_name(clear.time)
    volume = clear.volume_id.hex()
    # The volume's id and not its name: that is sealed. Without it verify looks for the session in
    # every volume.
    context.done(
        {"id": volume, "session": name},
        f"Session {name} was imported; verify it with: sparsebak verify {volume} --session {name}",
    )
    return 0
