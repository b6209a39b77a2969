# SPDX-License-Identifier: GPL-2.0-or-later
"""Rotation of snapshots: Monitor, Snapshot, Commit, Abort, and recovery from a crash at any point
of them.

Order within each: new snapshot and new map files first, under names that no state file mentions;
then the state file is replaced, which is the commit point; then what is no longer mentioned is
removed. ``recover`` does that last part again, so that dying anywhere leaves the old state or the
new one.
"""

import os
import time as clock

from dom0_agent.changed_map import GRAIN, ChangedMap
from dom0_agent.config import Volume
from dom0_agent.keyring import ArchiveKey, Keyring
from dom0_agent.log import WARNING, log
from dom0_agent.sources import Source, snapshot_name
from dom0_agent.targets import clean
from dom0_agent.tracking.committing import Work, apply, apply_again, opened_ids, prepare, prove
from dom0_agent.tracking.pending_log import in_use
from dom0_agent.tracking.state import ArchiveProgress, Committed, Pending, Redo, State, VolumeState
from wire import CLAIMED_SEQUENCE, MAX_VOLUME_SIZE
from wire.messages import Request
from wire.status import Code, Refused

CLOCK_SLACK = 600
"""Seconds by which the time that a caller proposes for its run may differ from dom0's clock."""


class Rotation:
    """The operations on one volume while its lock is held."""

    def __init__(self, store: VolumeState, state: State, source: Source) -> None:
        self.store, self.state, self.source = store, state, source

    def recover(self, keyring: Keyring) -> None:
        """Finish what a crash interrupted: ids still to be applied, snapshots and files that
        nothing mentions.
        """
        for archive_id, follow in self.state.follows.items():
            redo, follow.redo = follow.redo, None
            if redo is not None:
                if (archive := keyring.find(bytes.fromhex(archive_id))) is not None:
                    apply_again(self.store, follow, archive, redo)
                self.store.save(self.state)
        for number in self.source.snapshots() - self.state.snapshots():
            self.source.drop(number)
        clean(self.source)
        self.store.tidy(self.state)

    def yield_space(self) -> bool:
        """Where the storage is nearly full, give up pending sessions: their snapshots hold space.
        Whether any state changed.

        So a backup VM that begins sessions and never ends them, or reads them as slowly as it can,
        cannot fill the pool. One that is being extracted has until the next time; its Extract lets
        go of the snapshot when it sees that. Not saved yet.
        """
        try:
            self.source.require_room()
        except Refused as full:
            if full.code != Code.NO_SPACE:  # the pool is not there: others say so
                return False
            pending = [
                (archive_id, follow, follow.pending)
                for archive_id, follow in self.state.follows.items()
                if follow.pending is not None
            ]
            for archive_id, follow, session in pending:
                if not session.crowded and in_use(self.store.directory / session.log):
                    session.crowded = True
                    log(WARNING, f"{self.store.name}: its session has to end soon, because {full}")
                else:
                    log(WARNING, f"{self.store.name}: pending session dropped, because {full}")
                    self.abort_pending(archive_id, follow)
            return bool(pending)
        return False

    def rotate(self) -> int:
        """Take a new base and fold what changed since the old one into every archive's map. Not
        saved yet.
        """
        return 0 if self.unchanged() else self.fold(self.begin())

    def unchanged(self) -> bool:
        """Whether nothing changed since the base was taken, so that it may stay. Not saved yet."""
        base = self.state.base
        if base is None or base not in self.source.snapshots() or not self.source.unchanged(base):
            return False
        self.state.base_time = int(clock.time())
        return True

    def begin(self) -> int:
        """Take the next snapshot; return its number, one that no snapshot ever had."""
        number = (self.state.sequence >> 32) + 1 << 32 | int.from_bytes(os.urandom(4), "big")
        self.source.snapshot(number)
        return number

    def fold(self, number: int) -> int:
        """Make a snapshot taken by ``begin`` the base; return how many bytes changed since the
        last. Not saved yet.
        """
        try:
            changed, size = self._changed(number)
            for archive_id, follow in self.state.follows.items():
                if follow.committed or follow.pending:
                    self._fold(archive_id, follow, changed, size, number)
        except BaseException:
            # No state mentions it, so that nobody would miss it; but until the next recovery it
            # would hold whatever the qube overwrites.
            self.source.drop(number)
            raise
        self.state.sequence, self.state.base, self.state.base_size = number, number, size
        self.state.base_time = int(clock.time())
        return changed.changed(size)

    def _changed(self, number: int) -> tuple[ChangedMap, int]:
        size, base, before = self.source.size(number), self.state.base, self.state.base_size
        if size > MAX_VOLUME_SIZE:  # nobody would open its record
            raise Refused(
                Code.SOURCE_FAILED,
                f"{self.store.name} has {size} bytes, and volumes can have"
                f" {MAX_VOLUME_SIZE >> 40} TiB",
            )
        if base is None or base not in self.source.snapshots():
            # Somebody removed it, or the pool is an old copy. There is nothing to compare with, so
            # that all is compared by its ids.
            if base is not None:
                log(
                    WARNING,
                    f"{self.store.name}: base snapshot {base} is gone; taking everything as"
                    " changed",
                )
            return ChangedMap.everything(size), size
        changed = ChangedMap()
        for start, end in self.source.delta(base, number):
            changed.mark(start, min(end, size))
        # The last chunk is padded with zeros, so that moving the end changes it, too; and what a
        # volume grew by is in no delta.
        if size != before:
            changed.mark(max(min(before, size) - 1, 0), size)
        return changed, size

    def _fold(
        self, archive_id: str, follow: ArchiveProgress, changed: ChangedMap, size: int, number: int
    ) -> None:
        if changed.changed(size) == 0:
            return
        merged = self.store.load_map(follow.map, size)
        merged.merge(changed)
        follow.map = self.store.save_map(f"{archive_id}.{snapshot_name(number)}.map", merged)

    def finish(self) -> None:
        """The commit point, then the removal of what is no longer needed: of the base, too, if no
        archive builds on it.
        """
        if not self.followed:
            self.state.base = None
        self.store.save(self.state)
        # Not before that: a crash would leave a state whose base is gone, which costs a comparison
        # of the whole volume. This way round it leaves snapshots that hold space until the next
        # call on the volume.
        for number in self.source.snapshots() - self.state.snapshots():
            self.source.drop(number)
        self.store.tidy(self.state)

    @property
    def followed(self) -> bool:
        """Whether any archive holds a session of the volume, or is about to: only then is there
        anything to monitor.
        """
        return any(follow.committed or follow.pending for follow in self.state.follows.values())

    def monitor(self) -> None:
        """Walk the base snapshot on."""
        if self.followed:
            self.yield_space()
            self.rotate()
            self.finish()

    def snapshot(
        self, archive: ArchiveKey, volume: Volume, request: Request
    ) -> tuple[ArchiveProgress, Pending, bool]:
        """Begin a session, or return the one already pending (third value true)."""
        archive_id = archive.id.hex()
        follow = self.state.follows.get(archive_id)
        if request.number > max(CLAIMED_SEQUENCE, follow.mark if follow else 0):
            raise Refused(Code.BAD_REQUEST, f"no session has the number {request.number}")
        volume_id = archive.keys().volume_id(volume.identity, volume.volume).hex()
        if follow is None:
            follow = self.state.follows[archive_id] = ArchiveProgress(
                volume_id=volume_id, ids=f"{archive_id}.ids"
            )
        elif follow.volume_id != volume_id:
            raise Refused(
                Code.INTERNAL,
                f"{self.store.name}: the key of archive {archive.label} has changed",
            )
        if follow.pending:
            if follow.pending.snapshot in self.source.snapshots():
                return follow, follow.pending, True
            log(
                WARNING,
                f"{self.store.name}: snapshot of the pending session is gone; it is dropped",
            )
            self.abort_pending(archive_id, follow)
        # Asked for a session, which holds its snapshot until it is sent. Monitor does not ask: what
        # it takes it gives back at once, and the old base with it.
        self.source.require_room()
        self.rotate()
        follow.pending = self._begin(follow, archive, request, volume.dedup_domain)
        # The session has taken the map along. What changes from here on goes into a new one, so
        # that Monitor can walk on while the session is sent, and Abort has only to put the two
        # together.
        follow.map = None
        self.state.move_to(volume)
        self.finish()
        return follow, follow.pending, False

    def _begin(
        self, follow: ArchiveProgress, archive: ArchiveKey, request: Request, dedup_domain: bytes
    ) -> Pending:
        """The session that comes next. Its number and time go up with every session begun, whatever
        becomes of it.
        """
        full = not self._builds_on(follow, archive, request, dedup_domain.hex())
        session = os.urandom(16).hex()
        follow.mark = max(follow.mark, request.number) + 1
        follow.mark_time = _session_time(follow.mark_time, request.time)
        return Pending(
            session=session,
            snapshot=self.state.sequence,
            sequence=follow.mark,
            time=follow.mark_time,
            size=self.state.base_size,
            full=full,
            dedup_domain=dedup_domain.hex(),
            map=follow.map,
            log=f"{archive.id.hex()}.{session}.log",
        )

    def _builds_on(
        self, follow: ArchiveProgress, archive: ArchiveKey, request: Request, dedup_domain: str
    ) -> bool:
        """Whether a session can build on the committed one: both sides have it, and the ids are
        its.
        """
        committed = follow.committed
        if committed is None:
            return False
        if committed.session != request.session.hex():
            reason = "the archive's newest session is not the one committed here"
        elif committed.dedup_domain != dedup_domain:  # no id or key of the one serves the other
            reason = "the volume is in another deduplication domain now"
        else:
            with opened_ids(self.store, follow, archive, dedup_domain) as ids:
                if prove(ids, follow, archive):
                    return True
            reason = "the chunk ids kept here are not those of the session committed"
        log(WARNING, f"{self.store.name}: {reason}; full session")
        return False

    def commit(self, archive: ArchiveKey, session: bytes) -> None:
        """The caller holds the session durably: make it the one that later sessions build on."""
        follow = self._follow(archive)
        if follow.committed and follow.committed.session == session.hex():
            return  # the answer to an earlier Commit got lost
        pending = self._pending(follow, session)
        if pending.root is None or pending.digest is None:
            raise Refused(
                Code.INCOMPLETE,
                f"{self.store.name}: Commit of a session that was not extracted completely",
            )
        # Before anything is written: afterwards nobody could tell whether ids that do not fit were
        # wrong before, or are half written.
        work, pages = prepare(self.store, follow, archive, pending)
        follow.committed = Committed(
            session=pending.session,
            sequence=pending.sequence,
            time=pending.time,
            size=pending.size,
            dedup_domain=pending.dedup_domain,
            digest=pending.digest,
            root=pending.root,
        )
        follow.pending = None
        if work is Work.APPLY:
            follow.redo = Redo(
                log=pending.log,
                session=pending.session,
                full=pending.full,
                size=pending.size,
                dedup_domain=pending.dedup_domain,
            )
            # The session is committed from here on, whatever becomes of the ids. They are written
            # in place, for a volume of a TiB has 256 MiB of them, so that a crash may leave pages
            # of both sessions; the redo has the log laid over them again.
            self.store.save(self.state)
            apply(self.store, follow, archive, follow.redo, pages)
            follow.redo = None
        self.finish()

    def abort(self, archive: ArchiveKey, session: bytes) -> None:
        """Give a pending session up: what it would have sent counts as changed again."""
        follow = self._follow(archive)
        pending = self._pending(follow, session)
        if in_use(self.store.directory / pending.log):
            raise Refused(Code.BUSY, f"{self.store.name}: the session is being extracted")
        self.abort_pending(archive.id.hex(), follow)
        self.finish()

    def abort_pending(self, archive_id: str, follow: ArchiveProgress) -> None:
        """Give a pending session up: what it would have sent counts as changed again. Not saved
        yet.
        """
        pending, follow.pending = follow.pending, None
        if pending is None or follow.committed is None:
            follow.map = None  # the next session is a full one, which asks no map
            return
        if pending.map is None:
            return
        merged = self.store.load_map(pending.map, max(pending.size, self.state.base_size))
        merged.merge(self.store.load_map(follow.map, self.state.base_size))
        follow.map = self.store.save_map(f"{archive_id}.{pending.session}.map", merged)

    def _follow(self, archive: ArchiveKey) -> ArchiveProgress:
        follow = self.state.follows.get(archive.id.hex())
        if follow is None:
            raise Refused(
                Code.NO_SESSION, f"{self.store.name}: no session for archive {archive.label}"
            )
        return follow

    def _pending(self, follow: ArchiveProgress, session: bytes) -> Pending:
        if (pending := follow.pending_as(session)) is None:
            raise Refused(
                Code.NO_SESSION,
                f"{self.store.name}: session {session.hex()} is not the pending one",
            )
        return pending


def _session_time(last: int, untrusted_time: int) -> int:
    """Unix seconds: the run's time as the caller proposes it, if near to now, else now; never
    ``last``, an earlier one's.

    Later than that, for sessions are named by their times: a caller must not get two of one name
    sealed. Only where the earlier one lies further ahead than callers get (dom0's clock was wrong),
    time goes back.
    """
    # A run's volumes share one time, by which a user names the moment; dom0 takes it from the
    # caller, who alone knows what belongs to a run, but only near its own clock.
    now = int(clock.time())
    time = untrusted_time if abs(untrusted_time - now) <= CLOCK_SLACK else now
    return last + 1 if time <= last <= now + 2 * CLOCK_SLACK else time


def changed_since(store: VolumeState, follow: ArchiveProgress, size: int) -> int:
    """Bytes that may have changed since the archive's last committed session, as of the base
    snapshot.
    """
    if follow.committed is None:
        return size
    changed = store.load_map(follow.map, size)
    if follow.pending and not follow.pending.full:
        changed.merge(store.load_map(follow.pending.map, size))
    return changed.changed(size)


def grains_per_chunk(chunk_size: int) -> int:
    """Grains of a changed map in one chunk."""
    return chunk_size // GRAIN
