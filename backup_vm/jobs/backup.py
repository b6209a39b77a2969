# SPDX-License-Identifier: GPL-2.0-or-later
"""A backup run: interrupted sessions are finished first; then all volumes are snapshotted, then
extracted, in order; calls of volumes in which little changed overlap.
"""

import sqlite3
from collections import deque
from collections.abc import Callable

from backup_vm.agent.call import Call
from backup_vm.agent.client import Agent
from backup_vm.archive.archive import Archive
from backup_vm.archive.known import known_ids
from backup_vm.archive.pack_writer import PackWriter
from backup_vm.archive.partial import Partial
from backup_vm.errors import AgentError, DamagedError, SparsebakError
from backup_vm.jobs.failing import check_record, explained
from backup_vm.jobs.offering import Offering
from backup_vm.jobs.outcome import Done, Report
from backup_vm.jobs.overlap import AHEAD, Answer, ask, in_turn, is_little
from backup_vm.jobs.receiving import Coming
from backup_vm.terminal.interrupts import Interrupted, Interrupts
from backup_vm.terminal.progress import Progress
from backup_vm.terminal.text import size_text
from common.text import session_name
from wire.messages import (
    OFFER_FULL,
    OFFER_RESUMED,
    VOLUME_PENDING,
    Offer,
    VolumeEntry,
)

RESERVE = 1 << 20
SOON = 64 << 20
"""Bytes of changes up to which the call that ends a run is begun before they are there."""


class BackupRun:
    """One run over an archive that is open for writing."""

    def __init__(
        self,
        archive: Archive,
        agent: Agent,
        progress: Progress,
        ignore_free_space: bool = False,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._archive, self._agent, self._progress, self._warn = archive, agent, progress, warn
        self._ignore_free_space = ignore_free_space
        self._interrupts = Interrupts()
        self._partials: list[Partial] = []
        self._offering = Offering(archive, agent)
        self._writer = PackWriter(archive)
        self._committing: deque[tuple[VolumeEntry, Callable[[], None]]] = deque()
        self.report = Report(spoilt=sorted(archive.found))

    def run(self, volumes: list[VolumeEntry]) -> Report:
        """Back up the volumes. A volume that fails does not keep the others from being
        backed up.
        """
        publish = False
        try:
            with self._interrupts:
                self._run(volumes)
            publish = True
        except Interrupted:
            self._flush()  # keep what has come so far, to resume from there
            publish = True
            raise KeyboardInterrupt from None
        except (OSError, sqlite3.Error) as error:
            raise explained(error, self._archive) from None
        finally:
            self._leave(publish)
        return self.report

    def _leave(self, publish: bool) -> None:
        """End in an orderly way, whatever happened; what has come of sessions that are not complete
        is kept.

        ``publish``: in the store, too, which is no use to try when it was that which failed.
        """
        try:
            self._writer.close()
            for partial in self._partials:
                partial.close()
            for partial in self._partials:
                if publish and not partial.discarded:
                    partial.publish()
        except (OSError, SparsebakError) as error:  # the disk or network that made an end of it
            self._warn(f"the part of interrupted sessions that had come could not be kept: {error}")
        finally:
            self._progress.stop()

    def _run(self, volumes: list[VolumeEntry]) -> None:
        for volume in self._offering.rolled_back(volumes):  # before anything is written
            self._warn(
                f"the archive lacks session {session_name(volume.time)} of {volume.name}, which"
                " dom0 knows: it was removed, or an old copy of the archive was put back;"
                " everything is compared again"
            )
        self._prepare("Snapshot", volumes[0])
        offers = self._finish_interrupted(volumes)
        offers = self._snapshot_all(volumes, offers)
        self._check_space(volumes, offers)
        self._extract_all(volumes, offers)
        self._writer.finish()
        self._account_for(volumes)

    def _account_for(self, volumes: list[VolumeEntry]) -> None:
        """A volume of which nothing says that it was backed up now was not, whatever the way by
        which it was left out.
        """
        new = {(done.qube, done.volume) for done in self.report.done if not done.resumed}
        failed = {name for name, _ in self.report.failed}
        for volume in volumes:
            name = volume.name
            if (volume.qube, volume.volume) not in new and name not in failed:
                error = SparsebakError(
                    "this run stored no new session of it", "run: sparsebak backup"
                )
                self.report.failed.append((name, error))

    def _try(self, volume: VolumeEntry, action: Callable[..., object], *given: object) -> None:
        """Do something for a volume: its failure is noted, and keeps none of the others."""
        try:
            action(*given)
        except (AgentError, DamagedError) as error:
            self.report.failed.append((volume.name, error))

    def _finish_interrupted(self, volumes: list[VolumeEntry]) -> dict[bytes, Offer]:
        """Commit, resume, or give up what earlier runs left. Returns offers that turned out to
        be new ones.
        """
        self._partials = self._archive.partials()
        partials = {one.offer.volume_id: one for one in self._partials}
        offers: dict[bytes, Offer] = {}
        for volume in volumes:
            partial = partials.pop(volume.volume_id, None)
            if volume.flags & VOLUME_PENDING:
                self._try(volume, self._finish_one, volume, partial, offers)
            elif partial is not None:
                self._drop(partial)
        self._flush()
        return offers

    def _finish_one(
        self, volume: VolumeEntry, partial: Partial | None, offers: dict[bytes, Offer]
    ) -> None:
        offer = self._offering.snapshot(volume, 0)
        if partial is not None and not partial.is_of(offer):
            self._drop(partial)
            partial = None
        if not offer.flags & OFFER_RESUMED:
            offers[volume.volume_id] = offer
            return
        newest = self._offering.newest(volume.volume_id)
        if newest is not None and newest.clear.session == offer.session:
            if partial is not None:
                partial.discard()
            self._offering.commit_stored(volume, offer)
        elif partial is not None and self._offering.can_resume(offer):
            self._progress.start(offer.changed)
            self._extract(volume, offer, partial)
        else:
            self._agent.abort(volume.qube, volume.volume, offer.session)
            if partial is not None:
                self._drop(partial)

    def _drop(self, partial: Partial) -> None:
        from backup_vm.archive.prune import drop_partial

        self._writer.flush()  # or what others have taken in would seem to be wanted by nobody
        drop_partial(self._archive, partial)

    def _snapshot_all(
        self, volumes: list[VolumeEntry], offers: dict[bytes, Offer]
    ) -> dict[bytes, Offer]:
        """One offer for each volume, all under one time, so that the run is one moment and has one
        name.
        """
        time = max(
            (offer.time for offer in offers.values()), default=self._offering.new_time(volumes)
        )
        failed = {name for name, _ in self.report.failed}
        due = deque(v for v in volumes if v.volume_id not in offers and v.name not in failed)

        def take(volume: VolumeEntry, answer: Answer[Offer]) -> None:
            self._interrupts.check()
            self._try(volume, lambda: offers.update({volume.volume_id: answer()}))

        while due and not offers:  # the first alone: it has the time, as dom0's clock has it
            volume = due.popleft()
            self._prepare("Snapshot", due[0] if due else volume)
            take(volume, ask(self._offering.ask_now, volume, time))
        time = max((offer.time for offer in offers.values()), default=time)
        for volume, answer in in_turn(due, lambda v: self._offering.ask_now(v, time)):
            if volume is due[-1]:
                self._prepare("Extract", volumes[0])
            take(volume, answer)
        return offers

    def _extract_all(self, volumes: list[VolumeEntry], offers: dict[bytes, Offer]) -> None:
        # Large ones one after another: the threads of one volume keep all of dom0's processors
        # busy, so that two at once gain nothing.
        self._progress.start(sum(offer.changed for offer in offers.values()))
        due = [volume for volume in volumes if volume.volume_id in offers]
        asked: dict[bytes, Answer[None]] = {}
        for at, volume in enumerate(due):
            self._ask_ahead(due[at : at + 1 + AHEAD], offers, asked)
            if at + 1 == len(due):
                if sum(offer.changed for offer in offers.values()) <= SOON:
                    self._prepare("Commit", due[0])
            elif due[at + 1].volume_id not in asked:
                self._prepare("Extract", due[at + 1])
            if (take := asked.pop(volume.volume_id, None)) is not None:
                self._try(volume, take)
            else:
                self._try(volume, self._extract, volume, offers[volume.volume_id])
        self._flush()

    def _ask_ahead(
        self, due: list[VolumeEntry], offers: dict[bytes, Offer], asked: dict[bytes, Answer[None]]
    ) -> None:
        """Ask for the sessions that come next, up to the first that is to be extracted alone."""
        for volume in due:
            if volume.volume_id in asked:
                continue
            offer = offers[volume.volume_id]
            # Nor more than is taken at once: one that waited for an upload, and behind another,
            # dom0 would give up.
            waiting = sum(offers[key].changed for key in [*asked, volume.volume_id])
            if not is_little(offer) or not self._writer.takes_at_once(waiting):
                return
            asked[volume.volume_id] = ask(self._begin, volume, offer)

    def _flush(self) -> None:
        """Bring everything to disk, and have dom0 know of it."""
        self._writer.flush()
        self._settle(0)

    def _settle(self, left: int) -> None:
        """Wait for the sessions that dom0 was told to commit, until so many are left."""
        while len(self._committing) > left:
            volume, done = self._committing.popleft()
            self._try(volume, done)

    def _prepare(self, service: str, volume: VolumeEntry) -> None:
        """Let the service of a call that comes next start meanwhile."""
        self._agent.prepare(service, volume.qube, volume.volume)

    def _check_space(self, volumes: list[VolumeEntry], offers: dict[bytes, Offer]) -> None:
        """Refuse before anything is sent when the disk could not hold it all, even if nothing
        compressed.
        """
        compared = {
            key
            for key, offer in offers.items()
            if offer.flags & OFFER_FULL and self._offering.newest(key)
        }
        needed = sum(offer.changed for key, offer in offers.items() if key not in compared)
        needed += needed // 50 + RESERVE
        free = self._archive.storage.free()
        if free is None or free >= needed or self._ignore_free_space:
            return
        for volume in volumes:
            if volume.volume_id in offers:
                self._agent.abort(volume.qube, volume.volume, offers[volume.volume_id].session)
        raise SparsebakError(
            f"{self._archive.storage.describe()} has {size_text(free)} free, and this backup may"
            f" need up to {size_text(needed)}",
            "prune old sessions, or continue with --ignore-free-space if you expect it to compress",
        )

    def _extract(self, volume: VolumeEntry, offer: Offer, partial: Partial | None = None) -> None:
        """Take in one session, the rest of it where a ``partial`` one was begun; it is stored and
        committed as soon as its last pack is durable.
        """
        coming = self._coming(volume, offer, partial)
        known = None
        if coming.full and coming.newest is not None:
            known = known_ids(self._archive, coming.newest, offer)
        self._take_in(
            coming,
            self._agent.extract(
                volume.qube, volume.volume, offer.session, coming.partial.position, known
            ),
        )

    def _begin(self, volume: VolumeEntry, offer: Offer) -> Answer[None]:
        """Ask for a session of which nothing is here; what is returned takes it in."""
        coming = self._coming(volume, offer, None)
        call = self._agent.extract(volume.qube, volume.volume, offer.session, 0, ahead=True)
        return lambda: self._take_in(coming, call)

    def _take_in(self, coming: Coming, call: Call) -> None:
        volume, offer, stored = coming.volume, coming.offer, self._writer.stored
        self._progress.volume(volume.name)
        with self._agent.answered(call) as reply:
            record, count = coming.receive(reply, self._writer, lambda: self._after_chunk(offer))
        check_record(volume.name, record, offer, self._archive.parameters)
        self._progress.finished(offer.changed)
        done = Done(
            qube=volume.qube,
            volume=volume.volume,
            session=session_name(offer.time),
            id=offer.session.hex(),
            size=offer.size,
            changed=count * offer.chunk_size,
            stored=self._writer.stored - stored,
            full=coming.full,
            resumed=coming.resumed,
        )
        # That may be while another volume is being extracted: what fails then is this one's
        # failure, and no other's.
        self._writer.when_durable(lambda: self._try(volume, self._complete, coming, record, done))

    def _coming(self, volume: VolumeEntry, offer: Offer, partial: Partial | None) -> Coming:
        newest, resumed = self._offering.newest(volume.volume_id), partial is not None
        if partial is None:
            partial = Partial.create(self._archive.storage, offer)
            self._partials.append(partial)
        return Coming(volume, offer, newest, partial, resumed)

    def _after_chunk(self, offer: Offer) -> None:
        self._progress.advance(offer.chunk_size)
        self._interrupts.check()

    def _complete(self, coming: Coming, record: bytes, done: Done) -> None:
        """Store the session, then commit it: dom0 builds on what is durable here, and on nothing
        else.
        """
        volume = coming.volume
        self._offering.stored(coming.store(self._archive, record))
        if coming.full:
            self._archive.catalog.marks.compared(volume.volume_id.hex())
        committed = self._agent.ask_commit(volume.qube, volume.volume, coming.offer.session)

        def settled() -> None:
            committed()
            coming.partial.discard()
            self.report.done.append(done)

        self._committing.append((volume, settled))
        self._settle(AHEAD)
