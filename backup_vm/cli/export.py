"""``sparsebak export``: one session as one file, sealed as it is, or opened as a raw image or a tar
file.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import key_option, path, session_option
from backup_vm.terminal.text import size_text


def add_to(commands: Any) -> None:
    """Declare the command."""
    export = commands.add_parser(
        "export",
        help="write a session as one portable file",
        description=(
            "Writes a session as one file: sealed as it is, for sparsebak import, or opened with"
            " the key as a raw disk image or a tar file."
        ),
    )
    export.add_argument("volume", metavar="QUBE/VOLUME", help="the volume")
    session_option(export)
    export.add_argument(
        "-o", "--output", required=True, type=path, metavar="FILE", help="the file to write"
    )
    export.add_argument(
        "--format",
        choices=("sealed", "raw", "tar"),
        default="sealed",
        help="sealed (default); raw and tar need the key",
    )
    export.add_argument("--force", action="store_true", help="replace a file that exists")
    key_option(export)
    export.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.errors import SparsebakError
    from backup_vm.jobs.export import export, export_tar
    from backup_vm.jobs.reading import assemble, image_bytes
    from backup_vm.terminal.output import replacing
    from backup_vm.terminal.progress import progress_for
    from backup_vm.volumes import find_session, one

    context = Context(options)
    target: Path = options.output
    if target.exists() and not options.force:
        raise SparsebakError(f"{target} exists", "choose another name, or replace it with --force")
    with context.open() as archive:
        keys = context.keys(archive) if options.format == "sealed" else context.needed_keys(archive)
        volume = one(context.volumes(archive, keys), options.volume)
        session = find_session(volume, options.session)
        image = archive.image(list(volume.sessions), session)
        progress = progress_for("export", context.quiet or context.json)
        progress.start(image_bytes(image))
        try:
            if options.format == "raw" and keys is not None:
                assemble(archive, image, keys, volume.name, target, progress)
            else:
                with (
                    replacing(target, public=options.format == "sealed") as beside,
                    open(beside, "wb") as out,
                ):
                    if keys is not None and options.format == "tar":
                        export_tar(archive, image, keys, volume.name, out, progress)
                    else:
                        export(archive, image, volume.name, out, progress, keys)
                    out.flush()
                    os.fsync(out.fileno())
        finally:
            progress.stop()
    size = target.stat().st_size
    if context.json:
        fields = {
            "qube": volume.qube,
            "volume": volume.volume,
            "session": session.name,
            "format": options.format,
        }
        context.result({**fields, "file": str(target), "size": size}, "")
    context.say(
        f"{target}: {volume.name} as of {session.name}, {options.format}, {size_text(size)}."
    )
    return 0
