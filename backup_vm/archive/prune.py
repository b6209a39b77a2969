"""Removing sessions: their entries go into the next session, and chunks that nothing refers to any more are freed.

Order: note in the catalog that a sweep is due; store the merged successors; remove the session files, of each volume the
newest first; free the chunks; give the space back. Dying anywhere between leaves every remaining session's image as it was.
"""

from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import IO

from backup_vm.archive import merge, notes, references, sessions
from backup_vm.archive.archive import Archive, give_back
from backup_vm.archive.partial import Partial
from backup_vm.archive.repack import repack
from backup_vm.archive.sessions import Session
from backup_vm.errors import DamagedError


@dataclass(frozen=True)
class Pruned:
    """What was removed: sessions, chunks, and bytes given back."""

    sessions: int
    chunks: int
    space: int


def prune(archive: Archive, doomed: Iterable[Session]) -> Pruned:
    """Remove sessions. The images of all others stay as they are."""
    gone = frozenset(session.file for session in doomed)
    if not gone and archive.catalog.meta("limbo") is None:
        return Pruned(0, 0, 0)
    volumes = archive.sessions()
    for error in archive.damaged.values():  # what it refers to is unknown, so nothing may be freed
        raise DamagedError(f"nothing was pruned: {error}", "run: sparsebak scrub")
    groups = [group for series in volumes.values() for group in merge.groups(series, gone)]
    _check(archive, groups)
    archive.catalog.set_meta("sweep", "prune")
    with closing(archive.storage.scratch()) as candidates:
        for run, successor in groups:
            _merge(archive, run, successor, candidates)
        archive.storage.remove(*sorted(gone, reverse=True))
        _forget_notes(
            archive,
            (
                session.clear.session
                for series in volumes.values()
                for session in series
                if session.file not in gone
            ),
        )
        pruned = _free(archive, candidates, len(gone))
    archive.catalog.set_meta("sweep", None)
    if archive.catalog.meta("limbo") is None:
        return pruned
    archive.rebuild_catalog(free=True)  # chunks that earlier damage left without a session
    archive.catalog.set_meta("limbo", None)
    return Pruned(pruned.sessions, pruned.chunks, pruned.space + give_back(archive))


def _forget_notes(archive: Archive, kept: Iterable[bytes]) -> None:
    with suppress(DamagedError):  # told of whenever they are read
        notes.change(archive.storage, lambda every: every.keep_only(kept))


def _check(archive: Archive, groups: list[tuple[list[Session], Session | None]]) -> None:
    """Read the files that are to be merged against their digests, lest damage be stored anew under a good one."""
    for run, successor in groups:
        if successor is not None:
            for session in (*run, successor):
                sessions.check(archive.storage, session)


def _merge(
    archive: Archive, run: list[Session], successor: Session | None, candidates: IO[bytes]
) -> None:
    """Fold a run of doomed sessions into its successor, in one pass; ids that it does not take over become candidates."""
    if successor is not None:
        merge.Merge(archive.storage, [*run, successor]).store(candidates)
        return
    for session in run:
        for _, ids in sessions.columns(archive.storage, session).slices():
            candidates.write(ids.tobytes())


def drop_partial(archive: Archive, partial: Partial) -> None:
    """Remove a partial session that will not be gone on with, and free what only it refers to."""
    before = archive.catalog.meta("sweep")  # a run that stores chunks may be going on
    archive.catalog.set_meta("sweep", "partial")
    with closing(archive.storage.scratch()) as candidates:
        for raw in partial.ids():
            candidates.write(raw)
        partial.close()
        archive.storage.remove(partial.name)
        _free(archive, candidates, 0)
    archive.catalog.set_meta("sweep", before)


def _free(archive: Archive, candidates: IO[bytes], removed: int) -> Pruned:
    catalog, freed = archive.catalog, 0
    catalog.begin()
    for dead in references.unreferenced(archive, candidates):
        freed += catalog.free(dead)
    catalog.commit()
    space = give_back(archive)
    if catalog.packs_with_freed():  # no holes can be punched there
        space += repack(archive)
    return Pruned(removed, freed, space)
