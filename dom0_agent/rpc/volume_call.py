# SPDX-License-Identifier: GPL-2.0-or-later
"""A call about one volume, for one archive, and all that it works on: each thing is read once.

The archive's key is read when it is first needed. The volume's state is read under the volume's
lock: what is read without it may be of the past by the time that it is used. So a service that
gives the lock up and takes it again, as Extract does, reads it again, and must.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from dom0_agent.config import Volume, recall
from dom0_agent.keyring import ArchiveKey
from dom0_agent.rpc.dispatch import Call
from dom0_agent.sources import Source, Sources
from dom0_agent.tracking.identities import DOM0, load
from dom0_agent.tracking.progress import ArchiveProgress, Pending
from dom0_agent.tracking.rotation import Rotation
from dom0_agent.tracking.state import State, VolumeState
from wire.messages import Request
from wire.status import Code, Refused


class VolumeCall:
    """See above. ``archive_id`` is the archive's id in hexadecimal, as state files have it."""

    def __init__(
        self, call: Call, archive: ArchiveKey, store: VolumeState, volume: Volume | None
    ) -> None:
        self.call, self.archive, self.store = call, archive, store
        self.archive_id = archive.id.hex()
        self._volume = volume

    @classmethod
    def by_catalog(cls, call: Call, request: Request) -> Self:
        """For a service that takes a snapshot: the volume as it is now, as the catalog has it."""
        archive = call.archive(request)
        volume = call.volume()  # before the lock is taken: qubesd may take its time
        store = VolumeState.of(call.config.state_dir, volume)
        return cls(call, archive, store, volume)

    @classmethod
    def by_state(cls, call: Call, request: Request) -> Self:
        """For a service that works on a session begun: the volume as Snapshot found it. It need not
        be there any more, nor is qubesd asked.
        """
        archive = call.archive(request)
        if not call.asked.volume:
            raise Refused(Code.BAD_REQUEST, f"{call.asked}: which volume is meant is not said")
        qube, state_dir = call.target or DOM0, call.config.state_dir
        store = VolumeState(state_dir, load(state_dir).of(qube), call.asked.volume, qube)
        # To take the lock makes the volume's folder. A caller must not be able to have one made for
        # every name it thinks of, so that what has no state has to be in the catalog.
        return cls(call, archive, store, None if store.is_kept() else call.volume())

    @property
    def volume(self) -> Volume:
        """The volume; of ``by_state`` known once the lock was taken."""
        assert self._volume is not None, "the lock was never taken"  # noqa: S101
        return self._volume

    @contextmanager
    def locked(self) -> Iterator[State]:
        """The volume's state, read under its lock, which is held inside."""
        with self.store.locked() as state:
            if self._volume is None:
                self._volume = self._as_found(state)
            yield state

    def _as_found(self, state: State) -> Volume:
        """The volume as the last Snapshot found it."""
        try:
            return recall(state.place) if state.place is not None else self.call.volume()
        except (KeyError, TypeError, ValueError):  # written by another version
            return self.call.volume()

    def source(self) -> Source:
        """The volume's storage, as it is now."""
        return Sources(self.call.config.state_dir).open(self.volume)

    @contextmanager
    def rotation(self) -> Iterator[Rotation]:
        """The operations on the volume, under its lock, after recovery."""
        with self.locked() as state:
            rotation = Rotation(self.store, state, self.source())
            rotation.recover(self.call.keyring)
            yield rotation

    def pending(self, state: State, session: bytes) -> tuple[ArchiveProgress, Pending]:
        """The archive's pending session; Refused when it is another one, or there is none."""
        progress = state.follows.get(self.archive_id)
        pending = progress.pending_as(session) if progress else None
        if progress is None or pending is None:
            raise Refused(
                Code.NO_SESSION,
                f"{self.store.name}: session {session.hex()} is not the pending one",
            )
        return progress, pending

    def is_pending(self, session: bytes) -> bool:
        """Whether that session is the pending one now, by what the state file says; no lock is
        needed to ask. Where nobody can tell just now it is, as it was when the call began.
        """
        try:
            progress = self.store.load().follows.get(self.archive_id)
        except (OSError, Refused):
            return True
        return progress is not None and progress.pending_as(session) is not None
