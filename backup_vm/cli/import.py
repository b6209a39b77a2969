"""``sparsebak import``: take a session in that ``sparsebak export`` wrote."""

import argparse
from pathlib import Path
from typing import Any

from backup_vm.cli.context import Context, json_option, key_option


def add_to(commands: Any) -> None:
    """Declare the command."""
    take = commands.add_parser(
        "import",
        help="take in a session that export wrote from a copy of this archive",
        description="Takes in a session that export wrote. It must come from an archive of the same key: this one, or a copy "
        "of it. Give the passphrase to have it proven authentic first; without it, run verify afterwards.",
    )
    take.add_argument("file", type=Path, metavar="FILE")
    key_option(take)
    json_option(take)
    take.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.exporting import read_head, take_in
    from backup_vm.progress import progress_for
    from wire.names import session_name
    from wire.tree import chunk_count

    context = Context(options)
    with context.open(writing=True) as archive, open(options.file, "rb") as stream:
        clear = read_head(stream, options.file)[2]
        stream.seek(0)
        progress = progress_for("import", context.quiet or context.json)
        progress.start(2 * chunk_count(clear.size, clear.chunk_size) * clear.chunk_size)
        try:
            take_in(archive, stream, options.file, progress, context.keys(archive))
        finally:
            progress.stop()
    name = session_name(clear.time)
    if context.json:
        context.result({"id": clear.volume_id.hex(), "session": name}, "")
    context.say(
        f"Session {name} of volume {clear.volume_id.hex()} is here now; prove it: sparsebak verify --session {name}"
    )
    return 0
