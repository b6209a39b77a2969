"""Rotation of snapshots: Monitor, Snapshot, Commit, Abort, and recovery from a crash at any point
of them.

Order within each: new snapshot and new map files first, under names that no state file mentions;
then the state file is replaced, which is the commit point; then what is no longer mentioned is
removed. ``recover`` does that last part again, so that dying anywhere leaves the old state or the
new one.
"""

import os
import time as clock
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dom0_agent.archives import Archive
from dom0_agent.changed_map import GRAIN, ChangedMap
from dom0_agent.config import Volume, remember
from dom0_agent.log import WARNING, log
from dom0_agent.sources import Source, Sources, snapshot_name
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

    def recover(self, archives: dict[str, Archive]) -> None:
        """Finish what a crash interrupted: ids still to be applied, snapshots and files that
        nothing mentions.
        """
        for key, follow in self.state.follows.items():
            redo, follow.redo = follow.redo, None
            if redo is not None:
                if key in archives:
                    apply_again(self.store, follow, archives[key], redo)
                self.store.save(self.state)
        for number in self.source.snapshots() - self.state.snapshots():
            self.source.drop(number)
        self.source.clean()
        self.store.tidy(self.state)

    def give_way(self) -> bool:
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
                (key, follow, follow.pending)
                for key, follow in self.state.follows.items()
                if follow.pending is not None
            ]
            for key, follow, session in pending:
                if not session.crowded and in_use(self.store.directory / session.log):
                    session.crowded = True
                    log(WARNING, f"{self.store.name}: its session has to end soon, because {full}")
                else:
                    log(WARNING, f"{self.store.name}: pending session dropped, because {full}")
                    self.give_up(key, follow)
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
            for key, follow in self.state.follows.items():
                if follow.committed or follow.pending:
                    self._fold(key, follow, changed, size, number)
        except BaseException:
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
        if (
            size != before
        ):  # the last chunk is padded with zeros, so that moving the end changes it too
            changed.mark(max(min(before, size) - 1, 0), size)
        return changed, size

    def _fold(
        self, key: str, follow: ArchiveProgress, changed: ChangedMap, size: int, number: int
    ) -> None:
        if changed.changed(size) == 0:
            return
        merged = self.store.load_map(follow.map, size)
        merged.merge(changed)
        follow.map = self.store.save_map(f"{key}.{snapshot_name(number)}.map", merged)

    def finish(self) -> None:
        """The commit point, then the removal of what is no longer needed: of the base, too, if no
        archive builds on it.
        """
        if not self.followed:
            self.state.base = None
        self.store.save(self.state)
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
            self.give_way()
            self.rotate()
            self.finish()

    def snapshot(
        self, archive: Archive, volume: Volume, request: Request
    ) -> tuple[ArchiveProgress, Pending, bool]:
        """Begin a session, or return the one already pending (third value true)."""
        key = archive.id.hex()
        follow = self.state.follows.get(key)
        if request.number > max(CLAIMED_SEQUENCE, follow.mark if follow else 0):
            raise Refused(Code.BAD_REQUEST, f"no session has the number {request.number}")
        volume_id = archive.keys().volume_id(volume.qube, volume.volume).hex()
        if follow is None:
            follow = self.state.follows[key] = ArchiveProgress(
                volume_id=volume_id, ids=f"{key}.ids"
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
            self.give_up(key, follow)
        self.source.require_room()
        self.rotate()
        follow.pending = self._begin(follow, archive, request, volume.dedup_domain)
        follow.map = None
        self.state.place = remember(volume)
        self.finish()
        return follow, follow.pending, False

    def _begin(
        self, follow: ArchiveProgress, archive: Archive, request: Request, dedup_domain: bytes
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
        self, follow: ArchiveProgress, archive: Archive, request: Request, dedup_domain: str
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

    def commit(self, archive: Archive, session: bytes) -> None:
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
            self.store.save(self.state)
            apply(self.store, follow, archive, follow.redo, pages)
            follow.redo = None
        self.finish()

    def abort(self, archive: Archive, session: bytes) -> None:
        """Give a pending session up: what it would have sent counts as changed again."""
        follow = self._follow(archive)
        pending = self._pending(follow, session)
        if in_use(self.store.directory / pending.log):
            raise Refused(Code.BUSY, f"{self.store.name}: the session is being extracted")
        self.give_up(archive.id.hex(), follow)
        self.finish()

    def give_up(self, key: str, follow: ArchiveProgress) -> None:
        """Give a pending session up: what it would have sent counts as changed again. Not saved
        yet.
        """
        pending, follow.pending = follow.pending, None
        if pending is None or follow.committed is None:
            follow.map = None
            return
        if pending.map is None:
            return
        merged = self.store.load_map(pending.map, max(pending.size, self.state.base_size))
        merged.merge(self.store.load_map(follow.map, self.state.base_size))
        follow.map = self.store.save_map(f"{key}.{pending.session}.map", merged)

    def _follow(self, archive: Archive) -> ArchiveProgress:
        follow = self.state.follows.get(archive.id.hex())
        if follow is None:
            raise Refused(
                Code.NO_SESSION, f"{self.store.name}: no session for archive {archive.label}"
            )
        return follow

    def _pending(self, follow: ArchiveProgress, session: bytes) -> Pending:
        if follow.pending is None or follow.pending.session != session.hex():
            raise Refused(
                Code.NO_SESSION,
                f"{self.store.name}: session {session.hex()} is not the pending one",
            )
        return follow.pending


def _session_time(last: int, untrusted_time: int) -> int:
    """Unix seconds: the run's time as the caller proposes it, if near to now, else now; never
    ``last``, an earlier one's.

    Later than that, for sessions are named by their times: a caller must not get two of one name
    sealed. Only where the earlier one lies further ahead than callers get (dom0's clock was wrong),
    time goes back.
    """
    now = int(clock.time())
    time = untrusted_time if abs(untrusted_time - now) <= CLOCK_SLACK else now
    return last + 1 if time <= last <= now + 2 * CLOCK_SLACK else time


@contextmanager
def volume_rotation(
    state_dir: Path, volume: Volume, archives: dict[str, Archive]
) -> Iterator[Rotation]:
    """Lock a volume, recover it, and yield the operations on it. ``archives`` by id in
    hexadecimal.
    """
    store = VolumeState(state_dir, volume.qube, volume.volume)
    with store.locked() as state:
        rotation = Rotation(store, state, Sources(state_dir).open(volume))
        rotation.recover(archives)
        yield rotation


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
