# SPDX-License-Identifier: GPL-2.0-or-later
"""Making a read grant: the keys of a volume's deduplication domain, and the opened records of some
of its sessions.

dom0 keeps no records of older sessions: the backup VM gives them, and one is believed once it has
opened with the archive's key. The grant is handed to whoever asked for it, and kept nowhere.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from subprocess import DEVNULL, PIPE
from typing import IO, Any

from common.text import session_name, session_names, sessions_meant
from dom0_agent.catalog import CONFIG, SETTINGS, dedup_domain
from dom0_agent.config import Config
from dom0_agent.keyring import ArchiveKey, Keyring
from dom0_agent.log import INFO, log
from dom0_agent.qubesd import asking, connect
from dom0_agent.tracking import identities
from dom0_agent.tracking.progress import Committed
from dom0_agent.tracking.state import VolumeState, known_volumes
from wire.chunks import NotAuthentic
from wire.grants import MAX_RECORDS, BadGrant, Grant
from wire.messages import HEADER, HEADER_SIZE, KIND_RECORD, KIND_STATUS, Status
from wire.names import parse_volume_name
from wire.records import RECORD_SIZE, Clear, Record, open_record, read_clear
from wire.status import Code, Refused
from wire.stream import CutShort, Reader, read_exactly

SERVICE = "qubes.VMExec+sparsebak+--q+records+"
"""``sparsebak -q records VOLUME``, as VMExec wants it: parts by ``+``, each dash doubled. Of the
volume its id follows, which tells no name and is the same after a renaming.
"""
PATIENCE = 120.0
"""Seconds that the backup VM has to give all records."""
_DEFAULT_VOLUME = "private"


@dataclass(frozen=True)
class Granted:
    """A volume of an archive that a grant is to be made for. ``committed``: the session that dom0
    knows as its newest there.
    """

    archive: ArchiveKey
    name: str
    identity: str
    volume: str
    committed: Committed | None

    @property
    def volume_id(self) -> bytes:
        """Its volume id."""
        return self.archive.keys().volume_id(self.identity, self.volume)


def find(config: Config, name: str, label: str | None) -> Granted:
    """The volume called ``QUBE/VOLUME``, or ``QUBE`` for its private one, also one that is gone; in
    the archive of that label, or the one that has it. Raise BadName, Refused.
    """
    qube, volume = parse_volume_name(name if "/" in name else f"{name}/{_DEFAULT_VOLUME}")
    known = identities.load(config.state_dir)
    identity = known.by_name(qube) or known.of(qube)
    follows = VolumeState(config.state_dir, identity, volume).load().follows
    archives = list(Keyring(config.state_dir).readable())
    if label is not None:
        chosen = [one for one in archives if one.label == label]
    else:
        having = [one for one in archives if _committed(follows.get(one.id.hex()))]
        chosen = having or archives
    if len(chosen) != 1:
        labels = ", ".join(one.label for one in chosen or archives) or "none"
        raise Refused(
            Code.NO_ARCHIVE,
            f"name one archive of {qube}/{volume} with --archive LABEL; there are: {labels}",
        )
    newest = _committed(follows.get(chosen[0].id.hex()))
    return Granted(chosen[0], f"{qube}/{volume}", identity, volume, newest)


def granted_volumes(config: Config) -> list[str]:
    """The names of volumes that a grant can be made for, and that have files: those with a session
    in an archive whose key is here, without settings.
    """
    archives = [one.id.hex() for one in Keyring(config.state_dir).readable()]
    names, found = identities.load(config.state_dir), []
    for identity, volume in known_volumes(config.state_dir):
        follows = VolumeState(config.state_dir, identity, volume).load().follows
        name = (names.name(identity), volume)
        if volume == SETTINGS or name == CONFIG:
            continue
        if any(_committed(follows.get(archive)) for archive in archives):
            found.append("/".join(name))
    return sorted(found)


def _committed(progress: Any) -> Committed | None:
    return progress.committed if progress is not None else None


def ask_the_backup_vm(of: Granted, user: str) -> list[bytes]:
    """The records of the volume that its backup VM has, untrusted; raise Refused."""
    with asking():
        app = connect()
        if of.archive.caller not in app.domains:
            raise Refused(Code.INTERNAL, f"there is no qube {of.archive.caller}; give --records F")
        process = app.domains[of.archive.caller].run_service(
            SERVICE + of.volume_id.hex(), user=user, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL
        )
    # It may never end what it sends: what is read is bounded, and so is the time.
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    try:
        return read_records(process.stdout, f"{of.archive.caller}, asked for {of.name},")
    finally:
        timer.cancel()
        process.stdout.close()
        process.kill()
        process.wait()


def read_records(stream: Reader | IO[bytes], where: str) -> list[bytes]:
    """What 'sparsebak records' writes: records of the right length, of which nothing is proven;
    raise Refused.
    """
    try:
        return list(_records(stream))
    except (CutShort, ValueError) as error:
        raise Refused(
            Code.BAD_REQUEST,
            f"{where} gave no records as 'sparsebak records' of this version does: {error}",
        ) from None


def _records(stream: Reader) -> Iterator[bytes]:
    for _ in range(MAX_RECORDS + 1):
        kind, length = HEADER.unpack(read_exactly(stream, HEADER_SIZE))
        if (kind, length) == (KIND_STATUS, Status.length()):
            if Status.parse(read_exactly(stream, length)).code != Code.OK:
                raise ValueError("it failed")
            return
        if (kind, length) != (KIND_RECORD, RECORD_SIZE):
            raise ValueError(f"a frame of kind {kind} and length {length}")
        yield read_exactly(stream, length)
    raise ValueError(f"more than {MAX_RECORDS} records")


def make(
    of: Granted, untrusted_records: Sequence[bytes], sessions: Sequence[str], every: bool
) -> Grant:
    """A grant for the sessions that are named (by time, the beginning of it, or id), for every one,
    or for the newest. Raise Refused.
    """
    found = _of_the_volume(of, untrusted_records)
    if every:
        chosen = [raw for _, raw in found]
    elif sessions:
        chosen = list(dict.fromkeys(_named(of, found, session) for session in sessions))
    else:
        chosen = [raw for _, raw in found[-1:]]
    opened = [_open(of, raw) for raw in chosen]
    if not every and not sessions and not _is_current(of, opened[0]):
        when = session_name(opened[0].time)
        raise Refused(
            Code.OLDER,
            f"{of.archive.caller} has {when} as the newest session of {of.name}, which dom0 does"
            f" not know as that; to grant it anyway: --session {when}",
        )
    try:
        grant = Grant(of.archive.domain_keys(opened[0].dedup_domain), tuple(opened))
    except BadGrant as error:
        raise Refused(Code.BAD_REQUEST, f"{of.name}: {error}; name fewer sessions") from None
    return grant


def tell(of: Granted, grant: Grant, what: str) -> None:
    """Log what becomes of a grant: whoever hands it on knows whether it was."""
    names = ", ".join(grant.names.values())
    log(INFO, f"a grant {what}, for {of.name} in {of.archive.label}: {names}")


def _of_the_volume(of: Granted, untrusted_records: Sequence[bytes]) -> list[tuple[Clear, bytes]]:
    """The records with what they say in clear, by sequence; all must claim to be of the volume."""
    try:
        found = [(read_clear(raw), raw) for raw in untrusted_records]
    except NotAuthentic as error:
        raise Refused(Code.NOT_AUTHENTIC, f"{of.name}: {error}") from None
    for clear, _ in found:
        if (clear.archive, clear.volume_id) != (of.archive.id, of.volume_id):
            raise Refused(
                Code.WRONG_VOLUME,
                f"a record that was given for {of.name} in {of.archive.label} is of another volume"
                " or archive",
            )
    if not found:
        raise Refused(Code.NO_SESSION, f"there is no session of {of.name} in {of.archive.label}")
    return sorted(found, key=lambda one: one[0].sequence)


def _named(of: Granted, found: list[tuple[Clear, bytes]], wanted: str) -> bytes:
    names = session_names((clear.time, clear.session) for clear, _ in found)
    fits = sessions_meant(names, wanted)
    fitting = [raw for clear, raw in found if clear.session in fits]
    if not wanted or len(fitting) != 1:
        how_many = f"{len(fitting)} sessions" if len(fitting) > 1 else "no session"
        raise Refused(
            Code.NO_SESSION,
            f"{wanted[:80]!r} is {how_many} of {of.name}; name each as 'sparsebak list' shows it",
        )
    return fitting[0]


def _open(of: Granted, untrusted_record: bytes) -> Record:
    try:
        record = open_record(untrusted_record, of.archive.keys())
    except NotAuthentic as error:
        raise Refused(Code.NOT_AUTHENTIC, f"a record of {of.name}: {error}") from None
    ours = (of.archive.id, of.archive.chunk_size, of.archive.suite, of.identity, of.volume)
    if ours != (record.archive, record.chunk_size, record.suite, record.identity, record.volume):
        raise Refused(Code.WRONG_VOLUME, f"a record that was given for {of.name} is of another")
    return record


def _is_current(of: Granted, record: Record) -> bool:
    """Whether it is the session that dom0 knows as the newest, by its digest: what the backup VM
    calls the newest may be any that dom0 ever sealed.
    """
    if of.committed is None:
        return False
    return record.digest(of.archive.keys()).hex() == of.committed.digest


def is_shared(of: Granted, grant: Grant) -> bool:
    """Whether the grant's keys may open chunks of other volumes, for their domain is not the
    volume's own.
    """
    return grant.records[0].dedup_domain != dedup_domain(f"{of.identity}/{of.volume}")


def sharing(config: Config, of: Granted, grant: Grant) -> list[str]:
    """The other volumes whose newest sessions, as dom0 knows them, are of the grant's domain, so
    that its keys open their chunks. Of older ones dom0 does not know of what domain they are.
    """
    domain, found = grant.records[0].dedup_domain.hex(), []
    names = identities.load(config.state_dir)
    for identity, volume in known_volumes(config.state_dir):
        follows = VolumeState(config.state_dir, identity, volume).load().follows
        newest = _committed(follows.get(of.archive.id.hex()))
        if newest is not None and newest.dedup_domain == domain:
            found.append(f"{names.name(identity)}/{volume}")
    return [name for name in found if name != of.name]
