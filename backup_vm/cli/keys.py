# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak keys``: write down what a new dom0 needs to take the archive over, or take in key
slots that dom0 changed.
"""

import argparse
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.writing import output_path
from backup_vm.terminal.text import count_text

if TYPE_CHECKING:
    from backup_vm.archive.parameters import Parameters


def add_to(commands: Any) -> None:
    """Declare the command."""
    keys = commands.add_parser(
        "keys",
        help="write what a new dom0 needs to take the archive over",
        description=(
            "Writes key slots and newest records, all sealed, for: "
            "sparsebak-agent keys import LABEL FILE --caller QUBE"
        ),
    )
    keys.add_argument(
        "--refresh",
        action="store_true",
        help="store the key slots that were changed in dom0",
    )
    keys.add_argument(
        "-o",
        "--output",
        type=output_path,
        metavar="FILE",
        help="what to write (default, and -: standard output)",
    )
    keys.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command. All that is written is sealed, or in open mode as open as the archive."""
    from backup_vm.errors import Exit, UsageError
    from backup_vm.terminal.output import put_bytes, whole_file

    context = Context(options)
    if options.refresh:
        if options.output is not None:
            raise UsageError("--refresh stores key slots and writes no file", "leave out -o")
        return _refresh(context)
    if context.json and options.output is None:
        raise UsageError("the output of keys is not text", "with --json give -o FILE")
    with context.open() as archive:
        newest = [series[-1].record for series in archive.sessions().values()]
        slots = archive.parameters.slots
        raw = _as_dom0_takes_it(archive.parameters, newest)
        damaged = [str(error) for _, error in sorted(archive.damaged.items())]
        damaged += archive.missing()
    for line in damaged:
        context.warn(line)
    # The new dom0 takes what is written for the newest that there is.
    code = Exit.DAMAGED if damaged else Exit.OK
    if options.output is None:
        put_bytes(raw)
        return code
    with whole_file(options.output, force=False) as file:
        file.write(raw)
    data = {"file": str(options.output), "slots": len(slots), "records": len(newest)}
    context.done(data, f"{options.output} is written.")
    return code


def _as_dom0_takes_it(parameters: "Parameters", records: list[bytes]) -> bytes:
    """What ``keys import`` reads there: the archive, its key slots, and each volume's newest
    record.
    """
    import io

    from wire import FORMAT
    from wire.messages import KIND_RECORD, KIND_SLOT, MODE_OPEN, MODE_SEALED, ArchiveEntry
    from wire.stream import send, write_frame

    out = io.BytesIO()
    entry = ArchiveEntry(
        format=FORMAT,
        archive=parameters.archive,
        label=parameters.label,
        mode=MODE_OPEN if parameters.master else MODE_SEALED,
        suite=parameters.suite,
        chunk_size=parameters.chunk_size,
        created=parameters.created,
        slots=len(parameters.slots),
        key=parameters.master or bytes(32),
    )
    send(out, entry)
    for slot in parameters.slots:
        write_frame(out, KIND_SLOT, slot)
    for record in records:
        write_frame(out, KIND_RECORD, record)
    return out.getvalue()


def _refresh(context: Context) -> int:
    from backup_vm.errors import AgentError, DamagedError
    from wire.messages import MODE_OPEN

    with context.open(writing=True) as archive:
        entry, slots, _ = context.agent(archive).enroll(archive.parameters.label)
        if entry.archive != archive.parameters.archive:
            raise AgentError(
                f"dom0 knows another archive as {entry.label}",
                "see in dom0: sparsebak-agent archive list",
            )
        if (entry.mode == MODE_OPEN) != (archive.parameters.master is not None):
            raise DamagedError(
                f"the archive says that it is {archive.parameters.mode}, dom0 knows it as the"
                " opposite",
                "somebody has changed archive.toml; write it again from what dom0 knows: sparsebak"
                f" init DIR --label {entry.label} --repair",
            )
        archive.parameters._replace(slots=tuple(slots)).save(archive.storage)
    context.done(
        {"slots": len(slots)}, f"The archive has {count_text(len(slots), 'key slot')} now."
    )
    return 0
