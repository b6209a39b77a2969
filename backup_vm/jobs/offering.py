# SPDX-License-Identifier: GPL-2.0-or-later
"""What dom0 offers to be stored in a backup run, and whether that fits what is here."""

import time as clock
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from backup_vm.agent.call import RefusedError
from backup_vm.agent.client import Agent
from backup_vm.archive.archive import Archive
from backup_vm.archive.naming import volume_of
from backup_vm.archive.sessions import Session
from backup_vm.errors import AgentError
from wire import NO_SESSION
from wire.messages import OFFER_FULL, OFFER_RESUMED, Offer, VolumeEntry
from wire.status import Code

JUST_NOW = 60
"""Seconds by which the newest session's time may be ahead of our clock without a doubt about
either.
"""


class Offering:
    """Asks for the sessions of a run, each to build on the newest one that is stored."""

    def __init__(self, archive: Archive, agent: Agent) -> None:
        self._archive, self._agent = archive, agent
        self._newest: dict[bytes, Session | None] = {}
        self._files: defaultdict[str, list[str]] | None = None

    def newest(self, volume_id: bytes) -> Session | None:
        """The newest session of a volume, looked up once: nobody else stores any meanwhile."""
        if volume_id not in self._newest:
            if self._files is None:  # one listing for all volumes: it has the files of them all
                self._files = defaultdict(list)
                for name in self._archive.session_files():
                    self._files[volume_of(name)].append(name)
            volume = volume_id.hex()
            self._newest[volume_id] = self._archive.newest(volume, self._files[volume])
        return self._newest[volume_id]

    def stored(self, session: Session) -> None:
        """Remember that this run stored a session, which is the newest of its volume now."""
        self._newest[session.clear.volume_id] = session

    def rolled_back(self, volumes: Iterable[VolumeEntry]) -> Iterator[VolumeEntry]:
        """The volumes of which the archive lacks the newest session that dom0 knows."""
        for volume in volumes:
            newest = self.newest(volume.volume_id)
            if volume.session != NO_SESSION and (newest is None or newest.clear.time < volume.time):
                yield volume

    def snapshot(self, volume: VolumeEntry, time: int) -> Offer:
        """Have a session begun, or resumed if one is pending; ``time``: the run's, 0 for now.

        Raises AgentError, also for an offer that cannot be stored: it must be of this volume, and a
        full session, one that an earlier run began, or one that builds on the newest there is.
        """
        return self._ask(volume, time)()

    def _ask(self, volume: VolumeEntry, time: int) -> Callable[[], Offer]:
        """Ask for it; what is returned waits for the offer, and checks it."""
        newest = self.newest(volume.volume_id)
        session = NO_SESSION  # so that everything is compared
        if newest and not self._archive.catalog.marks.must_compare(newest.volume):
            session = newest.clear.session
        sequence = newest.clear.sequence if newest else 0
        answer = self._agent.ask_snapshot(volume.qube, volume.volume, session, sequence, time)
        return lambda: self._checked(volume, newest, answer())

    def _checked(self, volume: VolumeEntry, newest: Session | None, offer: Offer) -> Offer:
        chunk_size = self._archive.parameters.chunk_size
        if offer.volume_id != volume.volume_id or offer.chunk_size != chunk_size:
            raise AgentError(f"Snapshot {volume.name}: the agent offered something else")
        if not offer.flags & (OFFER_FULL | OFFER_RESUMED) and (
            newest is None or offer.previous != newest.clear.session
        ):
            raise AgentError(
                f"Snapshot {volume.name}: the agent builds on a session that is not the newest"
            )
        return offer

    def ask_now(self, volume: VolumeEntry, time: int) -> Callable[[], Offer]:
        """Ask for an offer of the volume as it is now; what is returned waits for it.

        A call of a run that was killed may still have begun a session in dom0 after its list was
        made. That one is of an earlier moment: stored under this run's name, it would pass for what
        was changed since.
        """
        answer = self._ask(volume, time)
        return lambda: self._of_now(volume, time, answer())

    def _of_now(self, volume: VolumeEntry, time: int, offer: Offer) -> Offer:
        if offer.flags & OFFER_RESUMED:
            self._agent.abort(volume.qube, volume.volume, offer.session)
            offer = self.snapshot(volume, time)
        if offer.flags & OFFER_RESUMED:
            raise AgentError(
                f"Snapshot {volume.name}: the agent offers a session that was abandoned"
            )
        return offer

    def commit_stored(self, volume: VolumeEntry, offer: Offer) -> None:
        """Commit a session that is stored, which dom0 still calls pending. It cannot where its
        state is a copy from before all of it was extracted: there the session is given up, and the
        next one compares everything.
        """
        try:
            self._agent.commit(volume.qube, volume.volume, offer.session)
        except RefusedError as error:
            if error.refusal != Code.INCOMPLETE:
                raise
            self._agent.abort(volume.qube, volume.volume, offer.session)

    def can_resume(self, offer: Offer) -> bool:
        """Whether an interrupted session can be resumed: what it builds on is the newest there is,
        and whole.
        """
        if offer.flags & OFFER_FULL:
            return True
        newest = self.newest(offer.volume_id)
        marked = self._archive.catalog.marks.must_compare(offer.volume_id.hex())
        return newest is not None and offer.previous == newest.clear.session and not marked

    def new_time(self, volumes: Iterable[VolumeEntry]) -> int:
        """Now, or the second after the newest session if that was just now, so that names stay
        distinct.
        """
        now = int(clock.time())
        newest = (self.newest(volume.volume_id) for volume in volumes)
        return max(
            [now, *(s.clear.time + 1 for s in newest if s and s.clear.time <= now + JUST_NOW)]
        )
