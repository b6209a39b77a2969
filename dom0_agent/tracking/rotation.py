# SPDX-License-Identifier: GPL-2.0-or-later
"""Rotation of snapshots: Monitor, Snapshot, Commit, Abort, and recovery from a crash at any point
of them.

Order within each: new snapshot and new bitmap files first, under names that no state file mentions;
then the state file is replaced, which is the commit point; then what is no longer mentioned is
removed. ``recover`` does that last part again, so that dying anywhere leaves the old state or the
new one.
"""

import os
import time as clock

from dom0_agent.bitmap import Bitmap
from dom0_agent.config import Volume
from dom0_agent.keyring import ArchiveKey, Keyring
from dom0_agent.log import WARNING, log
from dom0_agent.sources import Source, Unreadable, snapshot_name
from dom0_agent.tracking.committing import Work, apply, apply_again, prepare
from dom0_agent.tracking.next_session import next_session
from dom0_agent.tracking.pending_log import in_use
from dom0_agent.tracking.progress import ArchiveProgress, Committed, Pending, Redo
from dom0_agent.tracking.state import State, VolumeState
from wire import CLAIMED_SEQUENCE, LAST_SEQUENCE, MAX_VOLUME_SIZE
from wire.messages import Request
from wire.status import Code, Refused


class Rotation:
    """The operations on one volume while its lock is held."""

    def __init__(self, store: VolumeState, state: State, source: Source) -> None:
        self.store, self.state, self.source = store, state, source

    def recover(self, keyring: Keyring) -> None:
        """Finish what a crash interrupted: ids still to be applied, snapshots and files that
        nothing mentions.
        """
        for archive_id, progress in self.state.follows.items():
            redo, progress.redo = progress.redo, None
            if redo is not None:
                if (archive := keyring.find(bytes.fromhex(archive_id))) is not None:
                    apply_again(self.store, progress, archive, redo)
                self.store.save(self.state)
        for number in self.source.snapshots() - self.state.snapshots():
            self.source.drop(number)
        self.source.drop_unfinished()
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
                (archive_id, progress, progress.pending)
                for archive_id, progress in self.state.follows.items()
                if progress.pending is not None
            ]
            for archive_id, progress, session in pending:
                if not session.crowded and in_use(self.store.directory / session.log):
                    session.crowded = True
                    log(WARNING, f"{self.store.name}: its session has to end soon, because {full}")
                else:
                    log(WARNING, f"{self.store.name}: pending session dropped, because {full}")
                    self.abort_pending(archive_id, progress)
            return bool(pending)
        return False

    def rotate(self) -> int:
        """Replace the base by a new snapshot, and merge what changed between them into every
        archive's bitmap; return how many bytes changed. Not saved yet.
        """
        return 0 if self.unchanged() else self.replace_base(self.begin())

    def unchanged(self) -> bool:
        """Whether nothing changed since the base was taken, so that it may stay. Not saved yet."""
        base = self.state.base
        if base is None or not self._intact(base, self.state.base_size):
            return False
        try:
            if not self.source.unchanged(base):
                return False
        except Unreadable:  # of the base; or of the image, and then no snapshot can be taken of it
            return False
        self.state.base_time = int(clock.time())
        return True

    def _intact(self, number: int, size: int) -> bool:
        """Whether a snapshot is there and has all its bytes: who copies a pool to a disk that is
        too small, or repairs its file system, may leave less. What is missing would be zeros, or
        compared with nothing.
        """
        if number not in self.source.snapshots():
            return False
        try:
            return self.source.size(number) == size
        except Unreadable as error:
            log(WARNING, str(error))
            return False

    def begin(self) -> int:
        """Take the next snapshot; return its number, one that no snapshot ever had."""
        number = (self.state.sequence >> 32) + 1 << 32 | int.from_bytes(os.urandom(4), "big")
        self.source.snapshot(number)
        return number

    def replace_base(self, number: int) -> int:
        """Make a snapshot taken by ``begin`` the base, and merge what changed since the old one
        into every archive's bitmap; return how many bytes changed. Not saved yet.
        """
        try:
            changed, size = self._changed(number)
            for archive_id, progress in self.state.follows.items():
                if progress.committed or progress.pending:
                    self._merge(archive_id, progress, changed, size, number)
        except BaseException:
            # No state mentions it, so that nobody would miss it; but until the next recovery it
            # would hold whatever the qube overwrites.
            self.source.drop(number)
            raise
        self.state.sequence, self.state.base, self.state.base_size = number, number, size
        self.state.base_time = int(clock.time())
        return changed.changed(size)

    def _changed(self, number: int) -> tuple[Bitmap, int]:
        """What may differ between the base and a snapshot, and the snapshot's bytes; everything
        where there is no base to compare with.
        """
        size, base, before = self.source.size(number), self.state.base, self.state.base_size
        if size > MAX_VOLUME_SIZE:  # nobody would open its record
            raise Refused(
                Code.SOURCE_FAILED,
                f"{self.store.name} has {size} bytes, and volumes can have"
                f" {MAX_VOLUME_SIZE >> 40} TiB",
            )
        if base is None or not self._intact(base, before):
            # Somebody removed it, or the pool is an old copy. There is nothing to compare with, so
            # that all is compared by its ids.
            if base is not None:
                log(
                    WARNING,
                    f"{self.store.name}: base snapshot {base} is gone, or cut short; taking"
                    " everything as changed",
                )
            return Bitmap.everything(size), size
        changed = Bitmap()
        try:
            for start, end in self.source.delta(base, number):
                changed.mark(start, min(end, size))
        except Unreadable as error:
            log(WARNING, f"{error}; taking everything as changed")
            return Bitmap.everything(size), size
        # The last chunk is padded with zeros, so that moving the end changes it, too; and what a
        # volume grew by is in no delta.
        if size != before:
            changed.mark(max(min(before, size) - 1, 0), size)
        return changed, size

    def _merge(
        self,
        archive_id: str,
        progress: ArchiveProgress,
        changed: Bitmap,
        size: int,
        number: int,
    ) -> None:
        if changed.changed(size) == 0:
            return
        merged = self.store.load_bitmap(progress.map, size)
        merged.merge(changed)
        progress.map = self.store.save_bitmap(f"{archive_id}.{snapshot_name(number)}.map", merged)

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
        self.source.let_go()
        self.store.tidy(self.state)

    @property
    def followed(self) -> bool:
        """Whether any archive holds a session of the volume, or is about to: only then is there
        anything to monitor.
        """
        return any(
            progress.committed or progress.pending for progress in self.state.follows.values()
        )

    def monitor(self) -> None:
        """Replace the base snapshot by a newer one, where any archive follows the volume."""
        if self.followed:
            self.yield_space()
            self.rotate()
            self.finish()

    def snapshot(
        self, archive: ArchiveKey, volume: Volume, request: Request
    ) -> tuple[ArchiveProgress, Pending, bool]:
        """Begin a session, or return the one already pending (third value true)."""
        progress = self._follow(archive, volume, request)
        if progress.pending:
            if self._intact(progress.pending.snapshot, progress.pending.size):
                return progress, progress.pending, True
            log(
                WARNING,
                f"{self.store.name}: snapshot of the pending session is gone, or cut short; it is"
                " dropped",
            )
            self.abort_pending(archive.id.hex(), progress)
        if progress.mark >= LAST_SEQUENCE:  # no archive takes a session beyond
            raise Refused(
                Code.INTERNAL,
                f"{self.store.name}: its sessions for archive {archive.label} have come to the last"
                f" number, {progress.mark}; back it up to another archive",
            )
        # Asked for a session, which holds its snapshot until it is sent. Monitor does not ask: what
        # it takes it gives back at once, and the old base with it.
        self.source.require_room()
        self.rotate()
        progress.pending = next_session(
            self.store, self.state, progress, archive, request, volume.dedup_domain
        )
        # The session has taken the bitmap along. What changes from here on goes into a new one, so
        # that Monitor can continue while the session is sent, and Abort has only to merge the two.
        progress.map = None
        self.state.move_to(volume)
        self.finish()
        return progress, progress.pending, False

    def _follow(self, archive: ArchiveKey, volume: Volume, request: Request) -> ArchiveProgress:
        """What is known for an archive, nothing where it was not backed up to before; Refused for a
        number that none of its sessions can have, and where its key is not what it was.
        """
        archive_id = archive.id.hex()
        progress = self.state.follows.get(archive_id)
        if request.number > max(CLAIMED_SEQUENCE, progress.mark if progress else 0):
            raise Refused(Code.BAD_REQUEST, f"no session has the number {request.number}")
        volume_id = archive.keys().volume_id(volume.identity, volume.volume).hex()
        if progress is None:
            progress = self.state.follows[archive_id] = ArchiveProgress(
                volume_id=volume_id, ids=f"{archive_id}.ids"
            )
        elif progress.volume_id != volume_id:
            raise Refused(
                Code.INTERNAL,
                f"{self.store.name}: the key of archive {archive.label} has changed",
            )
        return progress

    def commit(self, archive: ArchiveKey, session: bytes) -> None:
        """The caller holds the session durably: make it the one that later sessions build on."""
        progress = self._progress(archive)
        if progress.committed and progress.committed.session == session.hex():
            return  # the answer to an earlier Commit got lost
        pending = self._pending(progress, session)
        if pending.root is None or pending.digest is None:
            raise Refused(
                Code.INCOMPLETE,
                f"{self.store.name}: Commit of a session that was not extracted completely",
            )
        # Before anything is written: afterwards nobody could tell whether ids that do not fit were
        # wrong before, or are half written.
        work, pages = prepare(self.store, progress, archive, pending)
        progress.committed = Committed(
            session=pending.session,
            sequence=pending.sequence,
            time=pending.time,
            size=pending.size,
            dedup_domain=pending.dedup_domain,
            digest=pending.digest,
            root=pending.root,
        )
        progress.pending = None
        if work is Work.APPLY:
            progress.redo = Redo(
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
            apply(self.store, progress, archive, progress.redo, pages)
            progress.redo = None
        self.finish()

    def abort(self, archive: ArchiveKey, session: bytes) -> None:
        """Give a pending session up: what it would have sent counts as changed again."""
        progress = self._progress(archive)
        pending = self._pending(progress, session)
        if in_use(self.store.directory / pending.log):
            raise Refused(Code.BUSY, f"{self.store.name}: the session is being extracted")
        self.abort_pending(archive.id.hex(), progress)
        self.finish()

    def abort_pending(self, archive_id: str, progress: ArchiveProgress) -> None:
        """Give a pending session up: what it would have sent counts as changed again. Not saved
        yet.
        """
        pending, progress.pending = progress.pending, None
        if pending is None or progress.committed is None:
            progress.map = None  # the next session is a full one, which asks for no bitmap
            return
        if pending.map is None:
            return
        merged = self.store.load_bitmap(pending.map, max(pending.size, self.state.base_size))
        merged.merge(self.store.load_bitmap(progress.map, self.state.base_size))
        progress.map = self.store.save_bitmap(f"{archive_id}.{pending.session}.map", merged)

    def _progress(self, archive: ArchiveKey) -> ArchiveProgress:
        progress = self.state.follows.get(archive.id.hex())
        if progress is None:
            raise Refused(
                Code.NO_SESSION, f"{self.store.name}: no session for archive {archive.label}"
            )
        return progress

    def _pending(self, progress: ArchiveProgress, session: bytes) -> Pending:
        if (pending := progress.pending_as(session)) is None:
            raise Refused(
                Code.NO_SESSION,
                f"{self.store.name}: session {session.hex()} is not the pending one",
            )
        return pending
