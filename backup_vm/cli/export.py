# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak export``: one session as one file, sealed as it is, or opened as a raw image or a tar
file.
"""

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import key_option, session_option, volume_argument
from backup_vm.cli.writing import stream_options
from backup_vm.terminal.text import size_text
from common.existing import exists

if TYPE_CHECKING:
    from backup_vm.volumes import Chosen


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
    volume_argument(export)
    session_option(export)
    stream_options(export, "FILE", "file")
    export.add_argument(
        "--format",
        choices=("sealed", "raw", "tar"),
        default="sealed",
        help="sealed (default); raw and tar need the key",
    )
    key_option(export)
    export.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.errors import SparsebakError, UsageError

    context = Context(options)
    target: Path | None = options.output
    if target is None:
        if options.format == "raw":
            raise UsageError(
                "a raw image is sparse, and has its name only when it is whole: it cannot go to"
                " standard output",
                "give -o FILE, or --format tar",
            )
        if context.json:
            raise UsageError("what is exported is not JSON", "with --json give -o FILE")
    elif exists(target) and not options.force:
        raise SparsebakError(f"{target} exists", "choose another name, or replace it with --force")
    with context.session(needs_key=options.format != "sealed") as chosen:
        _write(context, chosen, target)
    if target is None:
        return 0
    size = target.stat().st_size
    context.done(
        {**chosen.data(), "format": options.format, "file": str(target), "size": size},
        f"{target}: {chosen.volume.name} as of {chosen.session.name}, {options.format},"
        f" {size_text(size)}.",
    )
    return 0


def _write(context: Context, chosen: "Chosen", target: Path | None) -> None:
    from backup_vm.jobs.export import export, export_tar
    from backup_vm.jobs.reading import assemble, image_bytes
    from backup_vm.terminal.output import standard_output, whole_file

    archive, contents, name = chosen.archive, chosen.contents, chosen.volume.name
    form, image = context.options.format, chosen.image()
    with context.progress("export", image_bytes(image)) as progress:
        if form == "raw" and target is not None:
            assemble(archive, image, contents.needed_keys(), name, target, progress)
            return
        sealed = form == "sealed"
        with (
            nullcontext(standard_output())
            if target is None
            else whole_file(target, public=sealed) as out
        ):
            if sealed:
                export(archive, image, name, out, progress, contents.keys)
            else:
                export_tar(archive, image, contents.needed_keys(), name, out, progress)
