# SPDX-License-Identifier: GPL-2.0-or-later
"""sparsebak.Restore: put a session's contents in a volume's place.

The argument, ``QUBE+VOLUME+SESSION[+older]``, is what dom0's user is shown and asked: what the call
is for, what is sent and what it is put in the place of must be that and nothing else.

Writes the volume, and that only from data which the archive's key proves to be this volume's; until
the last byte is proven the old contents stay. A caller that waits for it is told which chunks
differ from what dom0 knows to be there, and sends no other. Reads the archive's key and the
volume's state. What was restored is reported on dom0's desktop. The one service that asks qubesd
(``targets.qubesd``).
"""

from contextlib import nullcontext
from functools import partial

from common.text import session_name
from dom0_agent import targets
from dom0_agent.catalog import SETTINGS, identified, is_document
from dom0_agent.config import Pool, Volume
from dom0_agent.keyring import ArchiveKey
from dom0_agent.log import INFO, log
from dom0_agent.notify import notify
from dom0_agent.rpc.dispatch import Call
from dom0_agent.rpc.heads import ABSENT
from dom0_agent.rpc.receiving import read_record, receive
from dom0_agent.rpc.services.verify import age_flags
from dom0_agent.tracking.identities import Identities, load
from dom0_agent.tracking.present import known
from dom0_agent.tracking.state import VolumeState
from wire.messages import KIND_WANTED, REQUEST_DIFFERING, Request, Status
from wire.names import Restoring
from wire.records import Record
from wire.status import STATUS_OLDER, Code, Refused
from wire.stream import write_frame
from wire.wanted import Wanted


def main(call: Call) -> Status:
    """Reply with a status whose flags say whether the session is the newest one that dom0 knows."""
    if (asked := call.asked.restoring) is None:
        raise Refused(Code.BAD_REQUEST, "a restore without an argument")
    request = call.request(flags=REQUEST_DIFFERING)
    archive = call.archive(request)
    identities = load(call.config.state_dir)
    volume = identified(_target(call, asked), identities)
    record = read_record(call.stdin, archive)
    source = _check_record(call, asked, volume, record, identities)
    flags = age_flags(call.config, archive, record)
    allowed = (source, volume.name) in call.config.allow_restore
    if record.identity != volume.identity and not allowed:
        # The newest of a qube that is gone is not the current one of another with its name.
        flags |= STATUS_OLDER
    if flags & STATUS_OLDER and not asked.older:
        raise Refused(Code.OLDER, f"{asked.argument()} does not say that the session is older")
    _replace(call, archive, volume, record, older=bool(flags & STATUS_OLDER), request=request)
    _tell(call, volume, source, record, flags)
    return Status(Code.OK, flags)


def _replace(
    call: Call, archive: ArchiveKey, volume: Volume, record: Record, older: bool, request: Request
) -> None:
    """Take the session, and put it in the volume's place. A restore changes nothing that is known
    of a volume: to the next backup it is a change of contents like any other.
    """
    state_dir = call.config.state_dir
    differing = bool(request.flags & REQUEST_DIFFERING)
    store = VolumeState.of(state_dir, volume)
    with store.alone(), known(store, archive, record) if differing else nullcontext() as present:
        base = present.base if present is not None else None
        target = targets.open(volume, record.size, state_dir, older, base)
        try:
            if present is None or target.changed is None:
                present = None
            else:
                present.begin(target, target.changed, call.config.threads)
            tell = partial(_ask_for, call, volume) if differing else None
            receive(call.stdin, archive, record, target, call.config.threads, present, tell)
        except BaseException:
            target.discard()
            raise
        target.commit()


def _ask_for(call: Call, volume: Volume, wanted: Wanted) -> None:
    for part in wanted.parts():
        write_frame(call.stdout, KIND_WANTED, part)
    call.stdout.flush()
    log(INFO, f"{volume.name}: {len(wanted)} of {wanted.chunks} chunks are wanted")


def _target(call: Call, asked: Restoring) -> Volume:
    """The volume to be written: the call's own target, and what its argument names. One that is
    gone has no target.
    """
    expected = None if asked.qube == "dom0" else asked.qube
    if call.target not in (expected, ABSENT) or (expected is None and call.target is not None):
        raise Refused(
            Code.NOT_AS_ASKED, f"the call is for {call.target or 'dom0'}, not for {asked.qube}"
        )
    if call.config.catalog == "qubes":
        return _on_qubes(asked, call.target == ABSENT)
    if call.target == ABSENT:
        raise Refused(Code.NO_VOLUME, f"{asked.qube} is not in the list of volumes")
    return call.volume()


def _on_qubes(asked: Restoring, absent: bool) -> Volume:
    """What is restored need not be backed up any more, nor be known since the list was written: of
    all but documents, which only wait in dom0, qubesd is asked.
    """
    name = (asked.qube, asked.volume)
    if is_document(*name):
        if absent:
            from dom0_agent.targets.qubesd import require_absent

            require_absent(asked.qube)
        return Volume(*name, Pool("dropbox", SETTINGS), "")
    if absent:
        raise Refused(Code.NO_VOLUME, f"{asked.qube} does not exist; its settings come first")
    if asked.qube == "dom0":
        raise Refused(Code.NO_VOLUME, f"dom0 has no volume {asked.volume}")
    return Volume(*name, Pool("qubesd", "qubesd"), "")


def _check_record(
    call: Call, asked: Restoring, volume: Volume, record: Record, identities: Identities
) -> str:
    """Raise Refused for a record of another volume, unless dom0's administrator allowed that, and
    for one of another session than was asked for; returns the present name of the record's volume.
    """
    source, session = _present_name(record, identities), session_name(record.time)
    if not (
        (record.identity, record.volume) == (volume.identity, volume.volume)
        or (_is_of_nobody(record, identities) and record.name == volume.name)
        or (source, volume.name) in call.config.allow_restore
    ):
        raise Refused(
            Code.WRONG_VOLUME, f"{call.caller} tried to restore {source} into {volume.name}"
        )
    if session != asked.session:
        raise Refused(
            Code.NOT_AS_ASKED, f"{call.caller} sent session {session}, not {asked.session}"
        )
    return source


def _present_name(record: Record, identities: Identities) -> str:
    qube = identities.known.get(record.identity)
    return f"{qube.name}/{record.volume}" if qube else record.name


def _is_of_nobody(record: Record, identities: Identities) -> bool:
    """Whether the qube of a record is gone and another has its name, or nothing is known of it
    here.

    Then its name says into which qube it goes, which dom0's user is shown. While it lives under
    another name, that is not so: a qube that is called now as ``vault`` was once is not to get what
    was in it.
    """
    return identities.is_retired(record.identity) or record.identity not in identities.known


def _tell(call: Call, volume: Volume, source: str, record: Record, flags: int) -> None:
    session = session_name(record.time)
    text = f"{volume.name} now has the contents of {source} of {session}, sent by {call.caller}"
    if flags & STATUS_OLDER:
        text += "; that is not the newest session known"
    log(INFO, text)
    notify("sparsebak: restored", text, urgent=bool(flags & STATUS_OLDER))
