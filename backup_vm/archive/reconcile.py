# SPDX-License-Identifier: GPL-2.0-or-later
"""The catalog is believed only for the files it was made for; where the store has others, it is
brought to what there is.

Packs never change under their names, so that names and sizes tell. Only holes in packs cannot be
seen from that: but whoever punches them has removed session files first. Sessions change when they
take over what others held, at times without another size: so their versions (times, of an archive
here) tell, too, that one is not what it was, as when an old copy of it was put back.

The store, against the catalog, and what is done:

- equal: nothing; the catalog is believed after one listing of the store,
- it has sessions more, or (for a writer, who builds on them) other versions of those of a volume:
  those are looked through, and nothing else, unless a chunk of theirs is not
  listed,
- it has other packs: those that are gone (or have another size) leave the catalog, new ones are
  read in; if they are many, and most of what there is, all of it is rebuilt,
- it lacks sessions that the catalog was made for: what no session refers to any more leaves it, and
  what may be in a hole is looked at,
- a chunk is listed nowhere: all of it is rebuilt from the packs' own indexes.

A chunk that is in no pack then is lost. The sessions that list it are spoilt; so are those that
build on a session which is missing. They are named once, and a volume whose newest image needs what
is lost gets a full session next. Readers do all this in a copy aside, and change nothing.
"""

import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, TYPE_CHECKING

from backup_vm.archive import catalog_file, derive, naming
from backup_vm.archive.catalog import ChunkCatalog
from backup_vm.archive.listing import Listing
from backup_vm.archive.remembered import Remembered, end_replacing
from backup_vm.archive.storage import TEMPORARY
from backup_vm.errors import DamagedError

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive
    from backup_vm.archive.sessions import Session

_UNREADABLE = -2
"""In place of its size: a session that could not be read is looked at again whenever the archive is
opened.
"""
_NAMED = 3
MANY = 1000
"""Packs from which on, if they are most of what there is, all are read again: a million chunks at
random places of the tree take twice as long as in the order of their ids.
"""
UNRECORDED = 32
"""Sessions up to which the catalog need not say that it is made for them, too: looked through, they
are believed as well.
"""


def open_catalog(archive: "Archive", now: Listing, aside: bool = False) -> ChunkCatalog:
    """The catalog, fit to be believed for what there is. Raises sqlite3.Error where it can neither
    be used nor made again.

    ``aside``: a reader that notes something in it, and so needs a copy of its own.
    """
    if archive.writing:
        end_replacing(archive)
    catalog = _opened(archive)
    try:
        if catalog is not None and not archive.storage.elsewhere:
            _name_lost(archive, catalog.files(), now.files)
        if catalog is not None and archive.writing:
            return _reconciled(archive, catalog, now)
        if catalog is not None and not aside and _fits(archive, catalog, now):
            return catalog
        if catalog is not None:
            catalog.close()
        return _aside(archive, catalog is not None, now)
    except sqlite3.DatabaseError as error:
        if not catalog_file.is_damage(error):
            raise
        # what else it says is as doubtful as that which was found damaged
        known = Remembered(lasting=Remembered.of(catalog).lasting)
        if catalog is not None:
            catalog.close()
        path = archive.storage.workspace.describe(catalog_file.NAME)
        archive.warnings.append(f"{path} was damaged; it has been rebuilt")
        return rebuild(archive, now, known)


def _opened(archive: "Archive") -> ChunkCatalog | None:
    """The catalog that is there, if it is one of ours; else None, with a warning."""
    workspace, catalog = archive.storage.workspace, None
    where, problem = workspace.describe(catalog_file.NAME), "was damaged"
    try:
        path = workspace.database(catalog_file.NAME)
        if not workspace.exists(catalog_file.NAME):
            if archive.session_files():
                archive.warnings.append(f"{where} was missing; it has been rebuilt")
            return None
        # A reader must not undo what a journal says is half done, which writes to the file.
        if archive.writing or not catalog_file.half_written(workspace):
            catalog = ChunkCatalog(path, read_only=not archive.writing, alone=archive.writing)
            if catalog.sound_for(archive.parameters.archive):
                return catalog
            problem = "was damaged, or is of another version or another archive"
        else:
            problem = "was left half written by a run that died"
    except DamagedError as error:  # not even SQLite is let near it
        archive.warnings.append(f"{error}; the catalog has been rebuilt")
        return None
    except sqlite3.DatabaseError as error:
        if not catalog_file.is_damage(error):
            raise
    if catalog is not None:
        catalog.close()
    archive.warnings.append(f"{where} {problem}; it has been rebuilt")
    return None


def _name_lost(archive: "Archive", then: Mapping[str, int], now: Mapping[str, int]) -> None:
    """Note and name sessions that have got lost although nothing that is there builds on them.

    Rules never remove the newest session of a volume, and whoever does so by name tells the catalog
    first. Of earlier ones that are gone an old catalog cannot tell whether they were pruned since;
    if they were not, what builds on them is cut off. Not of an archive elsewhere: its catalog is
    this machine's, and another machine may have removed any.
    """
    newest = {naming.volume_of(name): name for name in naming.sessions_in(now)}
    gone = [n for n in naming.sessions_in(then) if n not in now and then[n] != _UNREADABLE]
    for name in gone:
        last = newest.get(naming.volume_of(name))
        if last is None or naming.sessions_in([name, last])[1] == name:
            archive.lost.append(name)
            archive.found[name] = "it was there at the last run and is missing"
    if archive.lost:
        more = f" (and {len(archive.lost) - 1} more)" if len(archive.lost) > 1 else ""
        archive.warnings.append(
            f"{archive.storage.describe(archive.lost[-1])} is missing{more}, the newest session of"
            " its volume at the last run: put it back from a copy, before another prune"
            " reclaims its space"
        )
        archive.alarms.append(archive.warnings[-1])


def _fits(archive: "Archive", catalog: ChunkCatalog, now: Listing) -> bool:
    """Whether a reader can use the catalog as it is: sessions that are gone do not matter
    to it.
    """
    return catalog.pack_sizes() == now.packs and _complete(archive, catalog, _more(catalog, now))


def _more(catalog: ChunkCatalog, now: Listing) -> set[str]:
    """Sessions that the catalog was not made for."""
    new = now.files.items() - catalog.files().items()
    return {name for name, _ in new if naming.is_session(name)}


def _written_again(catalog: ChunkCatalog, now: Listing) -> set[str]:
    """Sessions of volumes of which the catalog was made for other versions than there are.

    What a reader reads of them it checks itself, so that it need not look through all of them.
    """
    then, known = [name for name in catalog.files() if name in now.files], catalog.seen()
    other = {volume for volume, one in now.seen(then).items() if one != known.get(volume)}
    return {n for n in filter(naming.is_session, then) if naming.volume_of(n) in other}


def _complete(archive: "Archive", catalog: ChunkCatalog, names: set[str]) -> bool:
    """Whether nothing is missing of these sessions, or of what they build on."""
    if any(derive.lacking_in(archive, catalog, sorted(names)).values()):
        return False
    volumes: dict[str, list[Session]] = {}
    for volume in set(map(naming.volume_of, names)):
        volumes |= archive.sessions(volume)
    return not names & (archive.cut_off(volumes).keys() | archive.damaged.keys())


def _aside(archive: "Archive", copied: bool, now: Listing) -> ChunkCatalog:
    """For a reader: a catalog of its own, from a copy of the one there is, or made again."""
    archive.temporary = catalog_file.folder_aside()
    if not copied:
        return rebuild(archive, now)
    catalog = ChunkCatalog(
        catalog_file.copy(archive.storage.workspace, Path(archive.temporary.name)), alone=True
    )
    return _reconciled(archive, catalog, now)


def _reconciled(archive: "Archive", catalog: ChunkCatalog, now: Listing) -> ChunkCatalog:
    """Bring a catalog to what there is; another one if it must be made again."""
    then = Listing(catalog.pack_sizes(), catalog.files())
    # A run died, or this is a copy from the middle of it: what a prune has begun to give back
    # cannot be seen from names and sizes.
    amidst = catalog.marks.storing or catalog.marks.reclaiming
    again = _written_again(catalog, now) if archive.writing else set()
    if now == then and not amidst and not again:
        return catalog
    fewer = then.files.items() - now.files.items()
    if now.packs == then.packs and not fewer and not amidst:
        names = _more(catalog, now) | again
        if _complete(archive, catalog, names):
            # A backup of a few small sessions would wait for the disk once more, only to spare the
            # next run a look through them.
            if len(names) > UNRECORDED or again:
                catalog.begin()
                catalog.set_files(now.files, now.seen(now.files))
                catalog.commit()
            else:
                archive.unrecorded += len(names)
            return catalog
    gone, new = then.packs.items() - now.packs.items(), now.packs.items() - then.packs.items()
    if len(new) > max(len(then.packs), MANY):
        known = Remembered.of(catalog)
        catalog.close()
        return rebuild(archive, now, known, [name for name, _ in gone])
    catalog.begin()
    numbers = {name: number for number, name in catalog.packs().items()}
    for name, _ in gone:
        catalog.drop_pack(numbers[name])
    for name, size in sorted(new):
        derive.index_pack(archive, catalog, name, size)
    found = derive.drop_unreferenced(archive, catalog)
    if fewer or new or amidst:
        everything = fewer or amidst
        suspects = catalog.packs() if everything else {catalog.number(n): n for n, _ in new}
        if derive.forget_holes(archive, catalog, suspects):
            found = derive.lacking_in(archive, catalog, archive.session_files())
    lacking = {name for name, count in found.items() if count}
    if lacking - catalog.spoilt():  # listed nowhere, or only in a pack that was thought to be dead
        with closing(derive.unlisted(archive, catalog, sorted(lacking))) as unlisted:
            catalog.rollback()
            known = Remembered.of(catalog)
            catalog.close()
            return rebuild(archive, now, known, [name for name, _ in gone], unlisted)
    _conclude(archive, catalog, now, lacking)
    return catalog


def rebuild(
    archive: "Archive",
    now: Listing,
    known: "Remembered | None" = None,
    gone: Iterable[str] = (),
    unlisted: IO[bytes] | None = None,
) -> ChunkCatalog:
    """Make the catalog again. ``gone``: packs that there were; ``unlisted``: see derive.Doubts."""
    known, archive.derived = known or Remembered(), True
    workspace, name = archive.storage.workspace, catalog_file.NAME
    if archive.writing:
        workspace.discard(name + TEMPORARY)
        temporary = workspace.database(name + TEMPORARY)
    else:  # others may be reading too, or the disk may be read-only
        archive.temporary = archive.temporary or catalog_file.folder_aside()
        temporary = Path(archive.temporary.name) / f"rebuilt-{name}"
    doubts = known.doubts(archive, unlisted)
    catalog, found = derive.derived(archive, temporary, now.packs, doubts)
    lacking = {name for name, count in found.items() if count}
    catalog.set_spoilt(known.spoilt)
    for volume in known.compare:
        catalog.marks.compare(volume)
    for key, value in known.lasting:
        catalog.set_meta(key, value)
    if lacking - known.spoilt:
        archive.warnings += [
            f"{archive.storage.describe(name)} is missing, or has another size than it had"
            for name in sorted(gone)
        ]
    _conclude(archive, catalog, now, lacking)
    if not archive.writing:
        return catalog
    # Beside the old one first, and in its place when it is whole. It cannot be renamed over that
    # one, whose journal would be played back into it. Dying between the two leaves the new one,
    # which the next writer puts there.
    catalog.close()
    workspace.discard(name)
    os.replace(temporary, workspace.database(name))
    workspace.discard(catalog_file.GATHERED)
    return ChunkCatalog(workspace.database(name), alone=True)


def true_digest(archive: "Archive") -> bytes:
    """The digest that the catalog must have, from packs and sessions; made aside."""
    known = Remembered.of(archive.catalog)
    with catalog_file.folder_aside() as folder:
        warnings, damaged = len(archive.warnings), dict(archive.damaged)
        path = Path(folder) / catalog_file.NAME
        catalog, _ = derive.derived(
            archive, path, Listing.of(archive.storage).packs, derive.Doubts(known.rotten)
        )
        try:
            return catalog.digest()
        finally:
            catalog.close()
            del archive.warnings[warnings:]
            archive.damaged = damaged


def spoil(
    catalog: ChunkCatalog, files: Iterable[str], volumes: "Mapping[str, Sequence[Session]]"
) -> None:
    """Remember spoilt session files. ``volumes``: sessions by volume id, oldest first.

    A volume of which one is spoilt since its last full session gets a full one next: earlier ones
    do not matter to it.
    """
    newest: dict[str, str] = {}
    for name in files:
        catalog.add_spoilt([name])
        volume = naming.volume_of(name)
        newest[volume] = max(newest.get(volume, ""), name)
    for volume, name in newest.items():
        if name >= max((one.file for one in volumes.get(volume, ()) if one.full), default=""):
            catalog.marks.compare(volume)


def _conclude(archive: "Archive", catalog: ChunkCatalog, now: Listing, lacking: set[str]) -> None:
    """Note what the catalog is made for now, and what is spoilt; commit. What was not known before
    is named.
    """
    volumes = archive.sessions()
    reasons = dict.fromkeys(lacking, "chunks of it are missing")
    reasons |= {name: str(error) for name, error in archive.damaged.items()}
    reasons |= archive.cut_off(volumes)
    known = catalog.spoilt()
    reasons |= derive.damaged(archive, known.intersection(now.files) - reasons.keys())
    new = {name: reason for name, reason in reasons.items() if name not in known}
    if new:
        archive.storage.check()  # or it may be what another run moves that has our lease by now
    catalog.set_spoilt(known & reasons.keys())
    spoil(catalog, new, volumes)
    catalog.set_files(
        {n: _UNREADABLE if n in archive.damaged else size for n, size in now.files.items()},
        now.seen(now.files),
    )
    if not archive.damaged:
        catalog.marks.storing = False
    catalog.commit()
    archive.found |= new
    times = {one.file: one.name for series in volumes.values() for one in series}
    by_volume: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(new):
        by_volume[naming.volume_of(name)].append(name)
    for volume, names in by_volume.items():
        listed = ", ".join(times.get(name, name.rpartition("/")[2]) for name in names[:_NAMED])
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        archive.warnings.append(
            f"volume {volume}: spoilt: {listed}{more} ({new[names[0]]}); "
            "the next backup compares it in full and stores again what it can"
        )
        archive.alarms.append(archive.warnings[-1])
