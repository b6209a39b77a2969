# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak records``: the sealed records of a volume's sessions, of which dom0 makes a grant."""

import argparse
from typing import Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import volume_argument
from backup_vm.cli.writing import output_path
from backup_vm.terminal.text import count_text


def add_to(commands: Any) -> None:
    """Declare the command."""
    records = commands.add_parser(
        "records",
        help="write a volume's session records, all sealed, for a grant",
        description=(
            "Writes the records of a volume's sessions, all sealed, as 'sparsebak-agent grant'"
            " reads them. On Qubes OS dom0 runs this by itself."
        ),
    )
    volume_argument(records, "whose sessions")
    records.add_argument(
        "-o",
        "--output",
        type=output_path,
        metavar="FILE",
        help="what to write (default, and -: standard output)",
    )
    records.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    import io

    from backup_vm.archive.naming import volume_of
    from backup_vm.errors import Exit, UsageError
    from backup_vm.terminal.output import put_bytes, whole_file
    from wire.messages import KIND_RECORD, Status
    from wire.status import Code
    from wire.stream import send, write_frame

    context = Context(options)
    if context.json and options.output is None:
        raise UsageError("the output of records is not text", "with --json give -o FILE")
    with context.contents() as contents:
        volume = contents.one(options.volume)
        damaged = {
            file: error
            for file, error in contents.archive.damaged.items()
            if volume_of(file) == volume.id
        }
    for error in damaged.values():
        context.warn(str(error))
    code = Exit.DAMAGED if damaged else Exit.OK
    out = io.BytesIO()
    for session in volume.sessions:
        write_frame(out, KIND_RECORD, session.record)
    send(out, Status(Code.OK))
    if options.output is None:
        put_bytes(out.getvalue())
        return code
    with whole_file(options.output, force=False) as file:
        file.write(out.getvalue())
    count = len(volume.sessions)
    context.done(
        {"file": str(options.output), "records": count},
        f"{options.output}: {count_text(count, 'record')} of {volume.name}.",
    )
    return code
