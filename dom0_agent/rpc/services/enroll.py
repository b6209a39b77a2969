# SPDX-License-Identifier: GPL-2.0-or-later
"""sparsebak.Enroll: tell the caller the parameters and key slots of an archive made for it in dom0.

Reads the archive of the request's label; in open mode its key too. Changes nothing.
"""

from dom0_agent.keyring import ADMIN
from dom0_agent.rpc.dispatch import Call
from wire import FORMAT, VERSION
from wire.messages import KIND_SLOT, KIND_VERSION, MODE_OPEN, ArchiveEntry
from wire.names import BadName, parse_name
from wire.status import Code, Refused
from wire.stream import write_frame


def main(call: Call) -> None:
    """Reply with an ArchiveEntry, then its key slots, then the agent's version."""
    try:
        label = parse_name(call.request("label").label, "label")
    except BadName as error:
        raise Refused(Code.BAD_REQUEST, str(error)) from None
    archive = call.keyring.by_label(label)
    if archive is None or call.caller not in (archive.caller, ADMIN):
        raise Refused(
            Code.NO_ARCHIVE,
            f"{call.caller} asked for an archive labelled {label}, which it may not use",
        )
    entry = ArchiveEntry(
        format=FORMAT,
        archive=archive.id,
        label=archive.label,
        mode=archive.mode,
        suite=archive.suite,
        chunk_size=archive.chunk_size,
        created=archive.created,
        slots=len(archive.slots),
        key=archive.master() if archive.mode == MODE_OPEN else bytes(32),
    )
    call.reply(entry)
    for slot in archive.slots:
        write_frame(call.stdout, KIND_SLOT, slot)
    write_frame(call.stdout, KIND_VERSION, VERSION.encode("ascii"))
