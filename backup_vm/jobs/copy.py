# SPDX-License-Identifier: GPL-2.0-or-later
"""Bringing a second copy of an archive up to date: what it lacks is sent, and each chunk is checked
on both sides.

A session is stored in the copy when all its chunks are there, or not at all. One that cannot be
read here (a damaged chunk, a session file that is lost) is named, and keeps none of the others from
being copied: what builds on it is stored as a full one.
"""

import os
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from backup_vm.archive import (
    catalog_file,
    name_index,
    notes,
    noting,
    parameters,
    sessions,
)
from backup_vm.archive.archive import Archive
from backup_vm.archive.format import NO_BASE
from backup_vm.archive.image import chain
from backup_vm.archive.opening import create_archive, open_archive
from backup_vm.archive.pack_writer import PackWriter
from backup_vm.archive.packs import PackReader
from backup_vm.archive.prune import prune
from backup_vm.archive.sessions import Session
from backup_vm.archive.storage import is_remote, open_storage
from backup_vm.errors import DamagedError, NoArchiveError, RemovedError, SparsebakError
from backup_vm.jobs.copy_session import Sender
from backup_vm.jobs.guard import Guard, Watch
from backup_vm.jobs.reading_back import read_back
from backup_vm.terminal.progress import Progress
from wire.chunks import Keys

ANY_GUARD = Guard()


@dataclass(frozen=True)
class Making:
    """How a copy is made where there is none: ``again``, also where there was one before;
    ``retention``: see Parameters.
    """

    again: bool = False
    retention: int = 0


ONLY_NEW = Making()


@dataclass
class Copied:
    """What was done: sessions stored, bytes of chunks sent, sessions removed, and what could not be
    copied.
    """

    sessions: int = 0
    stored: int = 0
    removed: int = 0
    failed: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    """What is to be said of the volumes that the guard left as they are."""
    spared: int = 0
    """Sessions that only the copy has, and that are too new to be removed."""
    gone: list[str] = field(default_factory=list)
    """Sessions that another machine removed here meanwhile."""
    unnoted: str | None = None
    """Why it could not be noted here that there is a copy; None if it is."""


def copy(
    source: Archive,
    location: str,
    progress: Progress,
    delete: Callable[[int], object] | None = None,
    making: Making = ONLY_NEW,
    keys: Keys | None = None,
    guard: Guard = ANY_GUARD,
) -> Copied:
    """Bring the copy in a directory or at a URL up to date.

    It is made if there is none and never was one, as far as the source's notes know: where one was,
    a disk is more likely not mounted; ``making`` may say otherwise. With ``delete`` sessions go
    that the source does not have, within the ``guard`` and unless anything failed; otherwise the
    copy may hold more. It is asked first, with their number, if there are any, and raises to keep
    them. With the archive's ``keys`` the records, ids and chunks that are sent have proven
    authentic. Dying anywhere leaves a copy that is whole as far as it goes, and the next run
    resumes.
    """
    unnoted = _prepare(source, location, making)
    with (
        catalog_file.explained(f"the catalog of {location}"),
        open_archive(location, writing=True, command="copy") as target,
    ):
        _same_archive(source, target)
        target.pack_size = source.pack_size
        run = _Run(source, target, progress, keys, guard)
        run.done.unnoted = unnoted
        if delete is not None and run.surplus:
            delete(len(run.surplus))
        run.send_all()
        _copy_notes(source, target, run.done)
        run.done.failed += name_index.copy(source, target)
        if delete is not None:
            run.remove()
        return run.done


def _prepare(source: Archive, location: str, making: Making) -> str | None:
    """Make the copy if there is none yet, and note that there is one; returns why that could not be
    noted.
    """
    _require_apart(source, location)
    try:
        known: bool | None = notes.remembers_copy(source.storage, location)
    except DamagedError:  # said when they are copied
        known = None
    try:
        with closing(open_storage(location)) as storage:
            there = parameters.load(storage)
        if making.retention > there.retention:
            raise SparsebakError(
                f"there is a copy in {location} already, and its retention is not changed by this",
                "leave it out here; to change it: sparsebak init DIR --label LABEL --repair"
                " --retention TIME",
            )
    except NoArchiveError as error:
        if known is not False and not making.again:
            raise NoArchiveError(
                f"{error}, but there {'was' if known else 'may have been'} a copy of this one",
                "mount its disk, then try again; if it is lost, make a new one with --init",
            ) from None
        _require_apart(source, location, made=True)
        create_archive(location, source.parameters._replace(retention=making.retention))
    return noting.remember_copy(source.storage, location) if known is False else None


def _require_apart(source: Archive, location: str, made: bool = False) -> None:
    """Raise SparsebakError for the archive itself, whatever it is called there; and, where the copy
    is ``made``, for a folder of it: what is there is lost with it.
    """
    itself = f"{location} is the archive itself, and no copy of it"
    beneath = f"{location} is in the archive itself, and would be lost with it"
    place = source.storage.describe()
    if is_remote(location) or source.storage.elsewhere:
        if notes.place_of(location) == notes.place_of(place):
            raise SparsebakError(itself, "name another place")
        return
    here, there = os.stat(place), Path(os.path.realpath(location))
    for folder in (there, *(there.parents if made else ())):
        with suppress(OSError):
            if os.path.samestat(here, folder.stat()):
                raise SparsebakError(itself if folder == there else beneath, "name another place")


def _same_archive(source: Archive, target: Archive) -> None:
    """Raise SparsebakError if this is no copy of the source; take over key slots that have
    changed.
    """
    ours, theirs = source.parameters, target.parameters
    place = target.storage.describe()
    if theirs.archive != ours.archive:
        raise SparsebakError(
            f"{place} is another archive ({theirs.label})",
            "name a new place, or a copy of this archive",
        )
    same = (theirs.mode, theirs.suite, theirs.chunk_size, theirs.master)
    if same != (ours.mode, ours.suite, ours.chunk_size, ours.master):
        # a file that says so must not put a key into a copy that has none
        raise SparsebakError(
            f"{place} is {theirs.mode}, this archive {ours.mode}, or they differ otherwise",
            "find out which of the two archive.toml is right, and put it in the other's place",
        )
    ours = ours._replace(retention=theirs.retention)  # of the place, not of what is in it
    if theirs != ours:
        ours.save(target.storage)


class _Run:
    """One run. ``done`` says what became of it."""

    def __init__(
        self,
        source: Archive,
        target: Archive,
        progress: Progress,
        keys: Keys | None,
        guard: Guard,
    ) -> None:
        self._watch = Watch.over(target, guard)
        self._source, self._target, self._progress = source, target, progress
        self._keys = keys
        self.done = Copied()
        self._ours, self._look = source.sessions(), source.looking.count
        self._theirs = target.sessions()
        ours = {session.file for series in self._ours.values() for session in series}
        every = [session for series in self._theirs.values() for session in series]
        new = {session.file for session in every if self._watch.new(session)} - ours
        self.done.spared = len(new)
        self.surplus = {session.file for session in every} - ours - new
        """Files of the sessions that only the copy has, and that may go."""
        self._whole = self._complete()
        """Files of the sessions that the copy has, complete."""
        self._sent: list[Session] = []

    def _complete(self) -> set[str]:
        """Which sessions the copy has as they should be: not damaged, with all that they build on,
        and their chunks.

        An image never changes, so that one that is there is the same, however its entries are
        divided up.
        """
        target, whole = self._target, set()
        spoilt = target.catalog.spoilt()
        for series in self._theirs.values():
            for session in series:
                try:
                    sessions.check(target.storage, session)
                except DamagedError as error:
                    target.damaged[session.file] = error
                    continue
                if session.file not in spoilt:
                    whole.add(session.file)
            for session in series:
                found, missing = chain(series, session)
                if missing != NO_BASE or any(one.file not in whole for one in found):
                    whole.discard(session.file)
        return whole

    def send_all(self) -> None:
        """Send what the copy lacks, oldest first, and read it back."""
        source, target, done = self._source, self._target, self.done
        before = set(target.pack_files())
        due = [
            one for series in self._ours.values() for one in series if one.file not in self._whole
        ]
        self._progress.start(sum(one.count for one in due) * source.parameters.chunk_size)
        writer = PackWriter(target)
        try:
            with PackReader(source.storage) as reader:
                sender = Sender(source, target, writer, reader, self._progress, self._keys)
                for session in due:
                    self._progress.volume(session.name)
                    try:
                        self._send_steadily(sender, session)
                    except RemovedError:
                        done.gone.append(f"{session.name} of volume {session.volume}")
                    except DamagedError as error:
                        done.failed.append(f"{session.name} of volume {session.volume}: {error}")
                writer.finish()
        finally:
            done.stored = writer.stored
            writer.close()
            self._progress.stop()
        done.failed += [*map(str, source.damaged.values()), *source.missing()]
        done.failed += read_back(target, set(target.pack_files()) - before, self._sent)

    def _send_steadily(self, sender: Sender, session: Session) -> None:
        """Send a session as it is here now: another machine may merge others into it meanwhile."""
        looking = self._source.looking

        def send() -> None:
            if self._look != looking.count:
                self._ours, self._look = self._source.sessions(), looking.count
                sender.forget()
            series = looking.series(self._ours.get(session.volume, []), session)
            one = next(one for one in series if one.file == session.file)
            sender.send(self._ours[one.volume], one, self._whole)

        with looking.present(session):
            looking.steady(send)
        self._whole.add(session.file)
        self._sent.append(session)
        self.done.sessions += 1

    def remove(self) -> None:
        """Remove from the copy what the source has not; nothing if it may only be lost there."""
        if not self._ours and self._theirs:
            self.done.failed.append(f"{self._source.storage.describe()} is empty; the copy is not")
        for series in self._ours.values():
            here = {NO_BASE, *(session.clear.session for session in series)}
            for session in series:
                if session.base not in here:
                    lost = (
                        f"{session.name} of volume {session.volume} builds on a session that is"
                        " missing here"
                    )
                    self.done.failed.append(lost)
        if self.done.failed:
            self.done.failed.append(
                "nothing was removed from the copy, because of the problems here"
            )
            return
        doomed: list[Session] = []
        for volume, series in self._target.sessions().items():
            mine = [one for one in series if one.file in self.surplus]
            held = self._watch.too_much(
                f"volume {volume} of the copy", series, {one.file for one in mine}
            )
            if held:
                self.done.held.append(held)
            else:
                doomed += mine
        try:
            pruned = prune(self._target, doomed)
            self.done.removed = pruned.sessions
            self.done.failed += pruned.refused
        except DamagedError as error:
            self.done.failed.append(str(error))


def _copy_notes(source: Archive, target: Archive, done: Copied) -> None:
    try:
        found = notes.load(source.storage)
        if found.sessions:
            notes.change(target.storage, lambda every: every.sessions.update(found.sessions))
    except DamagedError as error:
        done.failed.append(str(error))
