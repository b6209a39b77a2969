"""``sparsebak assemble``: a session to a raw image, with the key and without any agent."""

import argparse
from pathlib import Path
from typing import Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import key_option, path, session_option
from backup_vm.terminal.text import size_text


def add_to(commands: Any) -> None:
    """Declare the command."""
    assemble = commands.add_parser(
        "assemble",
        help="write a session as a raw disk image; needs the key, but no agent",
        description=(
            "Writes a session as a raw, sparse disk image, every piece of it authenticated. Needs"
            " the key, but no agent."
        ),
    )
    assemble.add_argument("volume", metavar="QUBE/VOLUME", help="the volume")
    session_option(assemble)
    assemble.add_argument(
        "-o", "--output", required=True, type=path, metavar="IMAGE", help="the image to write"
    )
    assemble.add_argument("--force", action="store_true", help="replace an image that exists")
    key_option(assemble)
    assemble.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.errors import SparsebakError
    from backup_vm.jobs.reading import assemble, image_bytes
    from backup_vm.terminal.progress import progress_for
    from backup_vm.volumes import find_session, one

    context = Context(options)
    target: Path = options.output
    if target.exists() and (
        not target.is_file() or not (options.force or target.stat().st_size == 0)
    ):
        raise SparsebakError(f"{target} exists", "choose another name, or replace it with --force")
    with context.open() as archive:
        keys = context.needed_keys(archive)
        volume = one(context.volumes(archive, keys), options.volume)
        session = find_session(volume, options.session)
        image = archive.image(list(volume.sessions), session)
        progress = progress_for("assemble", context.quiet)
        progress.start(image_bytes(image))
        try:
            record = assemble(archive, image, keys, volume.name, target, progress)
        finally:
            progress.stop()
    if context.json:
        fields = {
            "qube": record.qube,
            "volume": record.volume,
            "session": session.name,
            "size": record.size,
        }
        context.result({**fields, "image": str(target)}, "")
    context.say(
        f"{target}: {volume.name} as of {session.name}, {size_text(record.size)}, authentic."
    )
    return 0
