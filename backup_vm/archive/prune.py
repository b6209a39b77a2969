# SPDX-License-Identifier: GPL-2.0-or-later
"""Removing sessions: their entries go into the next session, and what nothing refers to any more is
given back.

Order: mark that a reclaim is due; store the merged successors, and hand on indexes of names; remove
the session files, of each volume the newest first, then their indexes; reclaim. Dying anywhere
between leaves every remaining session's image as it was.

A volume of which a session is missing or damaged does not keep others from being pruned, but while
that is so nothing is given back, and what a session that is kept may need of it stays: see
``_may_go``.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from typing import IO, NamedTuple

from backup_vm import failures
from backup_vm.archive import derive, holding, losses, merge, name_index, naming, noting, sessions
from backup_vm.archive.archive import Archive
from backup_vm.archive.image import chain
from backup_vm.archive.partial import Partial
from backup_vm.archive.reclaim import reclaim
from backup_vm.archive.sessions import Session
from backup_vm.archive.storage import UNSEEN
from backup_vm.errors import DamagedError, NoRoomError


class Pruned(NamedTuple):
    """What was removed: sessions, chunks, and bytes given back. ``refused``: volumes left as they
    are, with the reason, and what this run was the first that could not read. ``waiting``: bytes
    that may not be given back yet, the last of them before ``until`` (Unix seconds).
    """

    sessions: int
    chunks: int
    space: int
    refused: tuple[str, ...] = ()
    waiting: int = 0
    until: int = 0


def prune(
    archive: Archive, doomed: Iterable[Session], entirely: Collection[str] = frozenset()
) -> Pruned:
    """Remove sessions. The images of all others stay as they are. Raises DamagedError if none of
    them can go.

    ``entirely``: ids of volumes of which nothing is to stay, damaged sessions included.
    """
    known = archive.catalog.spoilt()
    done = _prune(archive, doomed, entirely)
    # Nobody can tell of a session that could not be read in this run whether it should have gone.
    found = [str(error) for name, error in archive.damaged.items() if name not in known]
    told = "\n".join(done.refused)
    done = done._replace(refused=(*done.refused, *(one for one in found if one not in told)))
    left = holding.give_back(archive)
    if left is None:
        return done
    return done._replace(space=left.removed, waiting=left.waiting, until=left.until)


def _prune(archive: Archive, doomed: Iterable[Session], entirely: Collection[str]) -> Pruned:
    asked = frozenset(session.file for session in doomed)
    if not asked and not archive.catalog.marks.unclaimed and not entirely:
        return Pruned(0, 0, 0)
    volumes = archive.sessions()
    plan = _plan(archive, volumes, asked, entirely)
    gone = plan.gone
    if plan.refused and not gone:
        raise DamagedError(f"nothing was pruned: {plan.refused[0]}", "run: sparsebak scrub")
    if gone:
        archive.catalog.marks.reclaiming = True
    with closing(archive.storage.workspace.scratch()) as candidates:
        for run, successor in plan.groups:
            _merge(archive, run, successor, candidates)
        listed = {session.file for run, _ in plan.groups for session in run}
        if gone - listed:  # damaged: nobody knows which chunks they name, so that any may be free
            for ids, _ in archive.catalog.lengths():
                candidates.write(ids)
        _hand_on_spoilt(archive, plan.groups, gone, volumes)
        _remove(archive, gone)
        kept = (s.clear.session for v in volumes.values() for s in v if s.file not in gone)
        chunks, space = reclaim(archive, candidates)
        if not archive.damaged and not archive.lost:  # what is put back has its tags still
            _forget_notes(archive, kept)  # now that there is room, if the disk was full
    return Pruned(len(gone), chunks, space, tuple(plan.refused))


class _Plan(NamedTuple):
    """The files that go; runs of sessions among them, each with the one that takes them over; and
    why volumes are left as they are.
    """

    gone: set[str]
    groups: list[tuple[list[Session], Session | None]]
    refused: list[str]


def _plan(
    archive: Archive,
    volumes: Mapping[str, list[Session]],
    asked: frozenset[str],
    entirely: Collection[str],
) -> _Plan:
    # of which no session can be read: nothing builds on what is damaged there
    lost = {volume for volume in set(entirely) - volumes.keys() if not _unseen(archive, volume)}
    plan = _Plan({name for name in archive.damaged if naming.volume_of(name) in lost}, [], [])
    for volume, series in volumes.items():
        mine = asked.intersection(session.file for session in series)
        if not mine:
            continue
        try:
            if volume in entirely:
                takes = {name for name in archive.damaged if naming.volume_of(name) == volume}
            else:
                takes = _may_go(archive, volume, series, mine)
            found = list(merge.groups(series, mine))
            _check(archive, found)
        except DamagedError as error:
            plan.refused.append(str(error))
            continue
        plan.groups.extend(found)
        plan.gone.update(mine, takes)
    unread = _unread(archive, asked - plan.gone, set(entirely) - volumes.keys() - lost)
    plan.refused.extend(line for line in unread if line not in plan.refused)
    return plan


def _remove(archive: Archive, gone: Collection[str]) -> None:
    """Remove session files, of each volume the newest first, and their indexes of names."""
    for volume in sorted(set(map(naming.volume_of, gone))):
        name_index.hand_on(archive, volume, gone)
    archive.catalog.forget_files(gone)  # first, or they would be called lost after a crash
    archive.storage.remove(*naming.sessions_in(gone)[::-1])
    name_index.clean(archive)
    for name in gone:
        archive.damaged.pop(name, None)


def _unseen(archive: Archive, volume: str) -> DamagedError | None:
    """Why the sessions of a volume cannot be told, if its folder cannot be looked into."""
    return archive.damaged.get(f"volumes/{volume}/{UNSEEN}")


def _unread(archive: Archive, left: Collection[str], unseen: Collection[str]) -> list[str]:
    """A line for each volume of which sessions were to go that cannot be read any more, or
    ``unseen``: they are left.
    """
    found = {volume: str(_unseen(archive, volume)) for volume in unseen}
    for name in sorted(left):
        volume = naming.volume_of(name)
        error = archive.damaged.get(name) or _unseen(archive, volume)
        if error is not None:
            found.setdefault(volume, str(error))
    return [f"volume {volume} is left as it is: {why}" for volume, why in sorted(found.items())]


def _may_go(
    archive: Archive, volume: str, series: list[Session], doomed: frozenset[str]
) -> set[str]:
    """Whether sessions of a volume can go; returns damaged ones that go with them. Raises
    DamagedError if they must stay.

    What is missing or damaged may be put back from a copy, and may then need any session since the
    last full one before it. A damaged one goes with all that was before it when what comes after it
    builds on nothing.
    """
    damaged = {n: str(e) for n, e in archive.damaged.items() if naming.volume_of(n) == volume}
    cut_off = archive.cut_off({volume: series})
    oldest = next((session for session in series if session.file not in doomed), None)
    # the oldest that stays takes over what it needs, and builds on nothing then
    start = "" if oldest is None or oldest.file in cut_off else chain(series, oldest)[0][0].file
    takes = set[str]()
    for name, problem in (damaged | cut_off).items():
        if name in damaged and name < start:
            takes.add(name)
            continue
        full = max((s.file for s in series if s.full and s.file < name), default="")
        if name not in doomed and any(full <= file < name for file in doomed):
            raise DamagedError(
                f"volume {volume} is left as it is: {problem}", "run: sparsebak backup"
            )
    return takes


def _forget_notes(archive: Archive, kept: Iterable[bytes]) -> None:
    try:
        with suppress(DamagedError):  # reported whenever they are read
            noting.changed(archive, lambda every: every.keep_only(kept))
    except (OSError, NoRoomError) as error:
        # What others write may have taken the room already, and some stores count what was removed
        # later. Notes of sessions that are gone say nothing, and the next prune removes them.
        if not failures.no_room(error):
            raise


def _check(archive: Archive, groups: list[tuple[list[Session], Session | None]]) -> None:
    """Read the files that are to be merged against their digests, so that no damage is stored under
    a good one.
    """
    for run, successor in groups:
        if successor is not None:
            for session in (*run, successor):
                sessions.check(archive.storage, session)


def _merge(
    archive: Archive, run: list[Session], successor: Session | None, candidates: IO[bytes]
) -> None:
    """Fold a run of doomed sessions into its successor, in one pass; ids that it does not take over
    become candidates.
    """
    if successor is not None:
        merge.Merge(archive.storage, [*run, successor]).store(candidates)
        archive.touched.add(successor.file)
        return
    for session in run:
        for _, ids in sessions.columns(archive.storage, session).slices():
            candidates.write(ids.tobytes())


def _hand_on_spoilt(
    archive: Archive,
    groups: list[tuple[list[Session], Session | None]],
    gone: Collection[str],
    volumes: Mapping[str, Sequence[Session]],
) -> None:
    """What a session lacked that goes its successor lacks now, unless that has superseded it: note
    and name that, for the catalog will be made for these files, and not look at them again.
    """
    catalog = archive.catalog
    spoilt = catalog.spoilt()
    if spoilt.isdisjoint(gone):
        return
    heirs = {
        successor.file: successor
        for run, successor in groups
        if successor is not None and any(session.file in spoilt for session in run)
    }
    found = derive.lacking_in(archive, catalog, heirs.keys() - spoilt)
    new = [name for name, count in found.items() if count]
    catalog.begin()
    catalog.set_spoilt(spoilt.difference(gone))
    losses.spoil(catalog, new, volumes)
    catalog.commit()
    for name in new:
        archive.found[name] = "chunks are missing of what it took over"
        archive.warnings.append(
            f"volume {heirs[name].volume}: spoilt: {heirs[name].name} ({archive.found[name]}); the"
            " next backup compares it in full and stores again what it can"
        )
        archive.alarms.append(archive.warnings[-1])


def drop_partial(archive: Archive, partial: Partial) -> None:
    """Remove a partial session that will not be resumed, and give back what only it refers to.

    Everything that a run has taken in so far must be durable: what only waits to be written refers
    to nothing yet.
    """
    storing = archive.catalog.marks.storing  # a run that stores chunks may not have ended
    archive.catalog.marks.storing = True
    with closing(archive.storage.workspace.scratch()) as candidates:
        for raw in partial.ids():
            candidates.write(raw)
        partial.discard()
        reclaim(archive, candidates)
    archive.catalog.marks.storing = storing or archive.left_listed
