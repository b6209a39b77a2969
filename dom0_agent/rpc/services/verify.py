# SPDX-License-Identifier: GPL-2.0-or-later
"""sparsebak.Verify: say whether a session that the caller holds is authentic and complete.

Reads the archive's key and the state of the volume that the record names. Changes nothing.
"""

from common.text import session_name
from dom0_agent.config import Config
from dom0_agent.keyring import ArchiveKey
from dom0_agent.log import WARNING, log
from dom0_agent.rpc.dispatch import Call
from dom0_agent.rpc.receiving import read_record, receive
from dom0_agent.tracking.state import VolumeState
from wire.messages import Status
from wire.records import Record
from wire.status import STATUS_OLDER, STATUS_UNKNOWN, Code


def main(call: Call) -> Status:
    """Reply with a status whose flags say whether the session is the newest one that dom0 knows."""
    archive = call.archive(call.request())
    record = read_record(call.stdin, archive)
    receive(call.stdin, archive, record, None, call.config.threads)
    return Status(Code.OK, age_flags(call.config, archive, record))


def age_flags(config: Config, archive: ArchiveKey, record: Record) -> int:
    """0 for the session that was committed last; STATUS_OLDER for any other, whatever its number
    says.

    A backup VM can have a session sealed and then abort it. So it is the record's digest that
    counts: where it is not the committed one, the session is an older one.
    """
    name, session = record.name, session_name(record.time)
    progress = (
        VolumeState(config.state_dir, record.identity, record.volume)
        .load()
        .follows.get(archive.id.hex())
    )
    newest = progress.committed if progress else None
    if newest is None:
        log(
            WARNING,
            f"{name}: no session of it is known here, so {session} is treated as an older one",
        )
        return STATUS_OLDER | STATUS_UNKNOWN
    if newest.digest == record.digest(archive.keys()).hex():
        return 0
    log(WARNING, f"{name}: {session} is not the newest session, {session_name(newest.time)}")
    return STATUS_OLDER
