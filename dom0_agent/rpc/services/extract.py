# SPDX-License-Identifier: GPL-2.0-or-later
"""sparsebak.Extract: send the chunks of a pending session, sealed, then its record.

The request's number is the first chunk wanted; with REQUEST_KNOWN the ids that the caller holds
follow it. Reads the pending snapshot. Writes the session's log and, when all is sent, the volume's
state. Does not touch the volume itself.

The record is sent last: when the log is whole and on disk, and the state says what was sealed.
"""

from contextlib import suppress
from functools import partial

from dom0_agent.rpc.dispatch import Call
from dom0_agent.rpc.extraction import Extraction
from dom0_agent.rpc.volume_call import VolumeCall
from dom0_agent.sources import Unreadable
from dom0_agent.tracking.chunk_ids import IdsDamaged
from dom0_agent.tracking.committing import opened_ids, prove
from dom0_agent.tracking.pending_log import PendingLog
from dom0_agent.tracking.progress import ArchiveProgress, Pending
from dom0_agent.tracking.rotation import Rotation
from wire.chunks import ID_SIZE
from wire.merkle import PAGE_IDS, chunk_count
from wire.messages import KIND_RECORD, REQUEST_KNOWN, Request
from wire.records import Record
from wire.status import Code, Refused
from wire.stream import CutShort, Reader, read_exactly, write_frame


def main(call: Call) -> None:
    """Reply with chunk frames in rising order, then the record."""
    request = call.request("session", "number", flags=REQUEST_KNOWN)
    on = VolumeCall.by_state(call, request)
    with on.locked() as state:
        progress, pending = on.pending(state, request.session)
        _check(on, pending, request)
        log = PendingLog(on.store.directory / pending.log)
    # Without the volume's lock, however long it takes: Monitor and other archives continue
    # meanwhile. What keeps Commit and Abort of this session away is the lock of its log.
    try:
        root = _extract(on, progress, pending, log, request)
        with on.locked() as state:
            progress, pending = on.pending(state, request.session)
            pending.root = root.hex()
            record = _record(on, progress, pending)
            pending.digest = record.digest(on.archive.keys()).hex()
            on.store.save(state)
    except (BrokenPipeError, CutShort):
        with suppress(OSError):  # the caller went away: the next call resumes behind what is kept
            log.flush()
        raise
    except IdsDamaged as damage:
        _abort(on, request, drop_ids=True)
        raise Refused(Code.DAMAGED, f"{damage}; the next session compares everything") from None
    except _SnapshotLost as lost:
        _abort(on, request)
        raise Refused(
            Code.SOURCE_FAILED, f"{lost}; the session is given up, and the next takes another"
        ) from None
    except Unreadable:
        with suppress(OSError):
            log.flush()
        raise
    finally:
        log.close()
    write_frame(call.stdout, KIND_RECORD, record.seal(on.archive.keys()))


def _check(on: VolumeCall, pending: Pending, request: Request) -> None:
    if request.flags & REQUEST_KNOWN and not pending.full:
        raise Refused(Code.BAD_REQUEST, "known ids go with a full session only")
    if request.number > chunk_count(pending.size, on.archive.chunk_size):
        raise Refused(Code.BAD_REQUEST, f"the session has no chunk {request.number}")


def _extract(
    on: VolumeCall, progress: ArchiveProgress, pending: Pending, log: PendingLog, request: Request
) -> bytes:
    """Send the chunks; the root of the image."""
    call, known = on.call, None
    if request.flags & REQUEST_KNOWN:
        known = _KnownFromCaller(call.stdin, chunk_count(pending.size, on.archive.chunk_size))
    changed = on.store.load_bitmap(pending.map, pending.size)
    wanted = partial(on.is_pending, request.session)
    with opened_ids(on.store, progress, on.archive, pending.dedup_domain) as ids:
        if not pending.full and not prove(ids, progress, on.archive):
            raise IdsDamaged(f"{progress.ids} is not that of the session before")
        extraction = Extraction(on.archive, pending, on.source(), changed, ids, known)
        try:
            return extraction.run(log, request.number, call.stdout, call.config, wanted)
        except Unreadable as lost:
            # Once it may be a disk that was away, and what came until then is kept. But a session
            # that was resumed and comes no further never will, while in the volume itself the
            # sector may have been written again.
            if extraction.has_sent:
                raise
            raise _SnapshotLost(str(lost)) from None


def _record(on: VolumeCall, progress: ArchiveProgress, pending: Pending) -> Record:
    """The record of a pending session that was wholly extracted."""
    archive = on.archive
    return Record(
        suite=archive.suite,
        archive=archive.id,
        volume_id=bytes.fromhex(progress.volume_id),
        session=bytes.fromhex(pending.session),
        sequence=pending.sequence,
        time=pending.time,
        size=pending.size,
        chunk_size=archive.chunk_size,
        qube=on.store.qube,
        volume=on.store.volume,
        identity=on.store.identity,
        dedup_domain=bytes.fromhex(pending.dedup_domain),
        root=bytes.fromhex(pending.root or ""),
        previous=bytes.fromhex(progress.committed.digest) if progress.committed else bytes(32),
    )


class _SnapshotLost(Exception):
    """The disk has lost a part of the pending session's snapshot."""


def _abort(on: VolumeCall, request: Request, drop_ids: bool = False) -> None:
    """Give up a session. ``drop_ids``: what it builds on proved damaged, and goes with it: its root
    could not be right.
    """
    with on.locked() as state:
        progress, pending = on.pending(state, request.session)
        rotation = Rotation(on.store, state, on.source())
        if drop_ids:
            with opened_ids(on.store, progress, on.archive, pending.dedup_domain) as ids:
                ids.drop()
        rotation.abort_pending(on.archive_id, progress)
        rotation.finish()


class _KnownFromCaller:
    """The ids that the caller says it holds, read from its stream page by page. They only decide
    what need not be sent.

    Of this volume only: with all ids of the archive the first session of a volume that is a copy of
    another would take half the time, for 32 bytes a chunk of the whole archive at the beginning of
    each session; private volumes are hardly ever copies.
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
