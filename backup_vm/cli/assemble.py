# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak assemble``: a session to a raw image, with the key and without any agent."""

import argparse
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from backup_vm.cli.context import Context
from backup_vm.cli.options import (
    path,
    session_option,
    volume_argument,
    yes_option,
)
from backup_vm.cli.reading import reading_options
from backup_vm.cli.writing import output_options
from backup_vm.terminal.text import size_text
from common.existing import exists, is_file
from wire.merkle import chunk_count

if TYPE_CHECKING:
    from wire.records import Record


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
    volume_argument(assemble)
    session_option(assemble)
    output_options(assemble, "IMAGE", "image").add_argument(
        "--onto",
        type=path,
        metavar="IMAGE",
        help="an image to be made what the session is; only what differs is written, to a clone",
    )
    yes_option(assemble)
    reading_options(assemble)
    assemble.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    context = Context(options)
    target: Path = options.onto or options.output
    _require_target(context, target)
    made = _from_backup_vm(context) if options.source is not None else _from_archive(context)
    record, session = made.record, made.session
    differing = min(made.chunks * record.chunk_size, record.size)
    context.done(
        {
            "qube": record.qube,
            "volume": record.volume,
            "session": session,
            "size": record.size,
            "image": str(target),
            "differing": differing,
        },
        f"{target}: {made.name} as of {session}, {size_text(record.size)}"
        + (f", of which {size_text(differing)} differed" if differing < record.size else "")
        + ", authentic.",
    )
    return 0


class _Made(NamedTuple):
    """What was written: a session's record, its volume's name and its own, and how many chunks were
    not there before.
    """

    record: "Record"
    name: str
    session: str
    chunks: int


def _require_target(context: Context, target: Path) -> None:
    """Before anything is read: what may be written to, or may be replaced, as asked for."""
    from backup_vm.errors import SparsebakError, UsageError

    options = context.options
    if options.onto:
        if options.source is not None:
            raise UsageError("--onto reads an archive", "leave out --from, or write to a file: -o")
        if not is_file(target):
            raise SparsebakError(f"{target} is no image file", "to make one: -o")
        context.confirm(f"Replace the present contents of {target}?")
    elif exists(target) and not is_file(target):
        raise SparsebakError(f"{target} is not a regular file", "choose another name")
    elif exists(target) and not options.force and target.stat().st_size:
        raise SparsebakError(f"{target} exists", "choose another name, or replace it with --force")
    elif exists(target):
        from backup_vm.jobs.onto import require_unused

        require_unused(target)


def _from_archive(context: Context) -> _Made:
    from backup_vm.jobs.onto import assemble_onto
    from backup_vm.jobs.reading import assemble, image_bytes

    options = context.options
    with context.session(needs_key=True) as chosen:
        keys, name, image = chosen.contents.needed_keys(), chosen.volume.name, chosen.image()
        what = chosen.archive, image, keys, name
        with context.progress("assemble", image_bytes(image)) as progress:
            if options.onto:
                record, written = assemble_onto(*what, options.onto, progress)
                return _Made(record, name, chosen.session.name, written)
            record = assemble(*what, options.output, progress)
            return _Made(record, name, chosen.session.name, image.chunks)


def _from_backup_vm(context: Context) -> _Made:
    """Assemble with a grant, from the backup VM that --from names."""
    from backup_vm.jobs.granted import assemble_from, granted

    options = context.options
    there = granted(options.source, options.grant, options.volume)
    record = there.one(options.session, "an image is")
    with (
        closing(there.image(record)) as image,
        context.progress("assemble", record.size) as progress,
    ):
        assemble_from(image, options.output, progress)
    chunks = chunk_count(record.size, record.chunk_size)
    return _Made(record, record.name, there.title(record), chunks)
