"""sparsebak.Extract: send the chunks of a pending session, sealed, then its record.

The request's number is the first chunk wanted; with REQUEST_KNOWN the ids that the caller holds
follow it. Reads the pending snapshot. Writes the session's log and, when all is sent, the volume's
state. Does not touch the volume itself.

The record is sent last: when the log is whole and on disk, and the state says what was sealed.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from dom0_agent.archives import Archive
from dom0_agent.config import Volume
from dom0_agent.rpc.dispatch import Call
from dom0_agent.rpc.extraction import Extraction, make_record
from dom0_agent.sources import Sources
from dom0_agent.tracking.chunk_ids import IdsDamaged
from dom0_agent.tracking.committing import opened_ids, prove
from dom0_agent.tracking.pending_log import PendingLog
from dom0_agent.tracking.rotation import Rotation
from dom0_agent.tracking.state import ArchiveProgress, Pending, State, VolumeState
from wire.chunks import ID_SIZE
from wire.merkle import PAGE_IDS, chunk_count
from wire.messages import KIND_RECORD, REQUEST_KNOWN, Request
from wire.status import Code, Refused
from wire.stream import CutShort, Reader, read_exactly, write_frame


def main(call: Call) -> None:
    """Reply with chunk frames in rising order, then the record."""
    request = call.request("session", "number", flags=REQUEST_KNOWN)
    archive, volume = call.archive(request), call.pending_volume()
    store = VolumeState(call.config.state_dir, volume.qube, volume.volume)
    with store.locked() as state:
        follow, pending = _pending(store, state, archive, request)
        _check(archive, pending, request)
        log = PendingLog(store.directory / pending.log)
    try:
        root = _extract(call, archive, volume, store, follow, pending, log, request)
        with store.locked() as state:
            follow, pending = _pending(store, state, archive, request)
            pending.root = root.hex()
            record = make_record(archive, store.name, follow, pending)
            pending.digest = record.digest(archive.keys()).hex()
            store.save(state)
    except (BrokenPipeError, CutShort):
        with suppress(OSError):  # the caller went away: the next call resumes behind what is kept
            log.flush()
        raise
    except IdsDamaged as damage:
        _give_up(call, archive, volume, store, request)
        raise Refused(Code.DAMAGED, f"{damage}; the next session compares everything") from None
    finally:
        log.close()
    write_frame(call.stdout, KIND_RECORD, record.seal(archive.keys()))


def _pending(
    store: VolumeState, state: State, archive: Archive, request: Request
) -> tuple[ArchiveProgress, Pending]:
    follow = state.follows.get(archive.id.hex())
    if follow is None or follow.pending is None or follow.pending.session != request.session.hex():
        raise Refused(
            Code.NO_SESSION, f"{store.name}: session {request.session.hex()} is not the pending one"
        )
    return follow, follow.pending


def _check(archive: Archive, pending: Pending, request: Request) -> None:
    if request.flags & REQUEST_KNOWN and not pending.full:
        raise Refused(Code.BAD_REQUEST, "known ids go with a full session only")
    if request.number > chunk_count(pending.size, archive.chunk_size):
        raise Refused(Code.BAD_REQUEST, f"the session has no chunk {request.number}")


def _is_pending(store: VolumeState, archive: Archive, request: Request) -> bool:
    """Whether the session is still the pending one; it is not when it gave way to a full pool."""
    follow = store.load().follows.get(archive.id.hex())
    return bool(follow and follow.pending and follow.pending.session == request.session.hex())


def _extract(
    call: Call,
    archive: Archive,
    volume: Volume,
    store: VolumeState,
    follow: ArchiveProgress,
    pending: Pending,
    log: PendingLog,
    request: Request,
) -> bytes:
    known: Callable[[int], bytes] | None = None
    if request.flags & REQUEST_KNOWN:
        known = _KnownFromCaller(call.stdin, chunk_count(pending.size, archive.chunk_size))
    changed = store.load_map(pending.map, pending.size)
    with opened_ids(store, follow, archive, pending.dedup_domain) as ids:
        if not pending.full and not prove(ids, follow, archive):
            raise IdsDamaged(f"{follow.ids} is not that of the session before")
        extraction = Extraction(
            archive, pending, Sources(call.config.state_dir).open(volume), changed, ids, known
        )
        wanted = partial(_is_pending, store, archive, request)
        return extraction.run(log, request.number, call.stdout, call.config, wanted)


def _give_up(
    call: Call, archive: Archive, volume: Volume, store: VolumeState, request: Request
) -> None:
    """Give up a session whose base proved damaged, and the base with it: its root could not be
    right.
    """
    with store.locked() as state:
        follow, pending = _pending(store, state, archive, request)
        rotation = Rotation(store, state, Sources(call.config.state_dir).open(volume))
        with opened_ids(store, follow, archive, pending.dedup_domain) as ids:
            ids.drop()
        rotation.give_up(archive.id.hex(), follow)
        rotation.finish()


class _KnownFromCaller:
    """The ids that the caller says it holds, read from its stream page by page. They only decide
    what need not be sent.
    """

    def __init__(self, stream: Reader, chunks: int) -> None:
        self._stream, self._left, self._next = stream, chunks, 0

    def __call__(self, index: int) -> bytes:
        untrusted_ids = b""
        while self._next <= index:
            count = min(PAGE_IDS, self._left)
            untrusted_ids = read_exactly(self._stream, count * ID_SIZE) if count else b""
            self._left -= count
            self._next += 1
        return untrusted_ids
