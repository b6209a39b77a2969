"""Removing sessions: their entries go into the next session, and chunks that nothing refers to any more are freed.

Order: note in the catalog that a sweep is due; store the merged successors; remove the session files; free the chunks;
give the space back. Dying anywhere between leaves every remaining session's image as it was.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from backup_vm.archive import sessions
from backup_vm.archive.archive import Archive, give_back
from backup_vm.archive.image import split
from backup_vm.archive.sessions import Session
from backup_vm.errors import DamagedError
from wire.sealing import ID_SIZE


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
    _check(archive, volumes, gone)
    archive.catalog.set_meta("sweep", "prune")
    candidates: set[bytes] = set()
    for series in volumes.values():
        if any(session.file in gone for session in series):
            candidates |= _merge(archive, series, gone)
    archive.storage.remove(*gone)
    pruned = _free(archive, candidates, len(gone))
    if archive.catalog.meta("limbo") is None:
        return pruned
    archive.rebuild_catalog(free=True)  # chunks that earlier damage left without a session
    archive.catalog.set_meta("limbo", None)
    return Pruned(pruned.sessions, pruned.chunks, pruned.space + give_back(archive))


def _check(archive: Archive, volumes: dict[str, list[Session]], gone: frozenset[str]) -> None:
    """Read the files that are to be merged against their digests, lest damage be stored anew under a good one."""
    for series in volumes.values():
        for session, after in zip(series, [*series[1:], None], strict=True):
            if session.file in gone and after is not None:
                sessions.check(archive.storage, session)
                sessions.check(archive.storage, after)


def drop_partial(archive: Archive, name: str, ids: Iterable[bytes]) -> None:
    """Remove a partial session that will not be gone on with, and free what only it refers to."""
    catalog = archive.catalog
    catalog.set_meta("sweep", "partial")
    candidates = {raw[at : at + ID_SIZE] for raw in ids for at in range(0, len(raw), ID_SIZE)}
    archive.storage.remove(name)
    _free(archive, candidates, 0)


def _merge(archive: Archive, series: list[Session], gone: frozenset[str]) -> set[bytes]:
    """Fold the doomed sessions of one volume into their successors; returns the ids of all that they held."""
    candidates: set[bytes] = set()
    carried: Session | None = None
    for session in series:
        if session.file in gone:
            _, ids = sessions.columns(archive.storage, session)
            candidates.update(split(ids))
            # Each doomed session is stored merged under its own name first, so that one pass serves any number of them.
            carried = session if carried is None else sessions.replace_merged(archive.storage, carried, session)
        elif carried is not None:
            sessions.replace_merged(archive.storage, carried, session)
            carried = None
    return candidates


def _free(archive: Archive, candidates: set[bytes], removed: int) -> Pruned:
    for ids in archive.references():
        candidates.difference_update(ids)
        if not candidates:
            break
    catalog = archive.catalog
    catalog.begin()
    before = catalog.count()[0]
    catalog.free(candidates)
    freed = before - catalog.count()[0]
    catalog.commit()
    space = give_back(archive)
    catalog.set_meta("sweep", None)
    return Pruned(removed, freed, space)
