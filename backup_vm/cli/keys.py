"""``sparsebak keys``: write down what a new dom0 needs to take the archive over, or take in key slots that dom0 changed."""

import argparse
from pathlib import Path
from typing import Any

from backup_vm.cli.context import Context


def add_to(commands: Any) -> None:
    """Declare the command."""
    keys = commands.add_parser(
        "keys",
        help="write key slots and newest records to a file, for: sparsebak-agent keys import",
    )
    keys.add_argument(
        "--refresh",
        action="store_true",
        help="take over what was changed in dom0 by: sparsebak-agent keys",
    )
    keys.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    keys.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command. All that is written is sealed, or in open mode as open as the archive."""
    import sys

    from wire.frames import KIND_RECORD, KIND_SLOT, MODE_OPEN, MODE_SEALED, ArchiveEntry
    from wire.stream import send, write_frame

    context = Context(options)
    if options.refresh:
        return _refresh(context)
    with context.open() as archive:
        parameters, newest = (
            archive.parameters,
            [series[-1] for series in archive.sessions().values()],
        )
        entry = ArchiveEntry(
            archive=parameters.archive,
            label=parameters.label,
            mode=MODE_OPEN if parameters.master else MODE_SEALED,
            suite=parameters.suite,
            chunk_size=parameters.chunk_size,
            created=parameters.created,
            slots=len(parameters.slots),
            key=parameters.master or bytes(32),
        )
        with (
            open(options.output, "xb")
            if options.output
            else open(sys.stdout.fileno(), "wb", closefd=False) as out
        ):
            send(out, entry)
            for slot in parameters.slots:
                write_frame(out, KIND_SLOT, slot)
            for session in newest:
                write_frame(out, KIND_RECORD, session.record)
    return 0


def _refresh(context: Context) -> int:
    from dataclasses import replace

    from backup_vm.errors import AgentError, DamagedError
    from wire.frames import MODE_OPEN

    with context.open(writing=True) as archive:
        entry, slots = context.agent(archive).enroll(archive.parameters.label)
        if entry.archive != archive.parameters.archive:
            raise AgentError(
                f"dom0 knows another archive as {entry.label}",
                "see in dom0: sparsebak-agent archive list",
            )
        if (entry.mode == MODE_OPEN) != (archive.parameters.master is not None):
            raise DamagedError(
                f"the archive says that it is {archive.parameters.mode}, dom0 knows it as the opposite",
                "somebody has changed archive.toml; dom0 gives its contents again by: sparsebak init --repair",
            )
        replace(archive.parameters, slots=tuple(slots)).save(archive.storage)
    context.say(f"The archive has {len(slots)} key slots now.")
    return 0
