"""sparsebak.Restore: put a session's contents in a volume's place.

Writes the volume, and that only from data which the archive's key proves to be this volume's; until the last byte is
proven the old contents stay. Reads the archive's key and the volume's state.
"""

from dom0_agent.catalog import open_catalog
from dom0_agent.config import Volume
from dom0_agent.log import INFO, log
from dom0_agent.receiving import read_record, receive
from dom0_agent.rotation import volume_rotation
from dom0_agent.service import Call
from dom0_agent.services.verify import age_note
from dom0_agent.sources import Replacement, Source
from wire.frames import Status
from wire.names import session_name
from wire.records import Record
from wire.status import Code, Refused


def main(call: Call) -> Status:
    """Reply with a status whose note says whether dom0 knows a newer session."""
    archive = call.archive(call.request())
    volume = _target(call)
    record = read_record(call.stdin, archive)
    _check_target(call, volume, record)
    with volume_rotation(call.config.state_dir, volume, call.archives().by_id()) as rotation:
        target = _begin(volume, rotation.source, record.size)
        try:
            receive(call.stdin, archive, record, target, call.config.threads)
        except BaseException:
            target.discard()
            raise
        target.commit()
    log(
        INFO,
        f"{volume.name} now has the contents of {record.qube}/{record.volume} of {session_name(record.time)}",
    )
    return Status(Code.OK, age_note(call.config, archive, record))


def _target(call: Call) -> Volume:
    """The volume to be written. A qube that does not exist cannot be a target: the argument names it, ``QUBE+settings``."""
    qube, plus, volume = call.argument.partition("+")
    if call.target is not None or not plus:
        return call.volume(restoring=True)
    if volume != "settings":
        raise Refused(Code.NO_VOLUME, f"{qube} does not exist; its settings come first")
    return open_catalog(call.config, call.caller).absent(qube)


def _begin(volume: Volume, source: Source, size: int) -> Replacement:
    if volume.managed:
        from dom0_agent.importing import QubesImport

        return QubesImport(volume, size)
    return source.replace(size)


def _check_target(call: Call, volume: Volume, record: Record) -> None:
    """A record belongs to one volume; it goes elsewhere only if dom0's administrator said so."""
    source = f"{record.qube}/{record.volume}"
    if source != volume.name and (source, volume.name) not in call.config.allow_restore:
        raise Refused(
            Code.WRONG_VOLUME, f"{call.caller} tried to restore {source} into {volume.name}"
        )
