"""sparsebak.Verify: say whether a session that the caller holds is authentic and complete.

Reads the archive's key and the state of the volume that the record names. Changes nothing.
"""

from dom0_agent.archives import Archive
from dom0_agent.config import Config
from dom0_agent.log import WARNING, log
from dom0_agent.receiving import read_record, receive
from dom0_agent.service import Call
from dom0_agent.state import Store
from wire.frames import Status
from wire.records import Record
from wire.status import NOTE_OLDER, Code


def main(call: Call) -> Status:
    """Reply with a status whose note says whether dom0 knows a newer session."""
    archive = call.archive(call.request())
    record = read_record(call.stdin, archive)
    receive(call.stdin, archive, record, None, call.config.threads)
    return Status(Code.OK, age_note(call.config, archive, record))


def age_note(config: Config, archive: Archive, record: Record) -> int:
    """NOTE_OLDER when dom0 knows a newer session of the volume in this archive, else 0."""
    follow = (
        Store(config.state_dir, record.qube, record.volume).load().follows.get(archive.id.hex())
    )
    newest = follow.committed if follow else None
    if newest is None or newest.sequence <= record.sequence:
        return 0
    log(
        WARNING,
        f"{record.qube}/{record.volume}: session {record.sequence} is older than the newest, {newest.sequence}",
    )
    return NOTE_OLDER
