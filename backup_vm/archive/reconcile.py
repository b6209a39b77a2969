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
- it has packs that could not be read: they are read in again, by a writer every chunk of them, and
  what cannot be read then either is damage,
- it lacks sessions that the catalog was made for: what no session refers to any more leaves it, and
  what may be in a hole is looked at,
- a chunk is listed nowhere: all of it is rebuilt from the packs' own indexes.

A chunk that is in no pack then is lost. The sessions that list it are spoilt; so are those that
build on a session which is missing. They are named once, and a volume whose newest image needs what
is lost gets a full session next. Readers do all this in a copy aside, and change nothing.
"""

import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, TYPE_CHECKING

from backup_vm.archive import catalog_file, derive, losses, naming
from backup_vm.archive.catalog import ChunkCatalog
from backup_vm.archive.listing import Listing
from backup_vm.archive.remembered import Remembered, end_replacing
from backup_vm.archive.storage import TEMPORARY
from backup_vm.errors import DamagedError
from common.existing import exists

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive

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
            losses.name_lost(archive, catalog.files(), now.files)
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
        moved = archive.moved(catalog_file.NAME)
        path = moved or workspace.database(catalog_file.NAME)
        if not (exists(moved) if moved else workspace.exists(catalog_file.NAME)):
            # Of an archive as it was none is ever kept.
            past = archive.storage.elsewhere and not archive.storage.writable()
            if archive.session_files() and not past:
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
    # In one call: each lists all that there is.
    volumes = archive.sessions(*set(map(naming.volume_of, names))) if names else {}
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
    fewer = then.files.items() - now.files.items()
    if now.packs == then.packs and not fewer and not amidst and _added(archive, catalog, now):
        return catalog
    gone, new = then.packs.items() - now.packs.items(), now.packs.items() - then.packs.items()
    doubted = catalog.doubted_packs()
    dropped = [name for name, _ in gone]
    missing = [name for name in dropped if name not in doubted or name not in now.packs]
    if len(new) > max(len(then.packs), MANY):
        known = Remembered.of(catalog)
        catalog.close()
        return rebuild(archive, now, known, missing)
    catalog.begin()
    # What a session that is gone had named may be in a hole by now, in any pack.
    everywhere = bool(fewer) or amidst
    doubts = derive.Doubts(packs=doubted)
    if not archive.writing:  # what it reads it checks, and need not read all of a pack for
        known_bad = (place for place in catalog.rotten() if place[0] in doubted)
        doubts = derive.Doubts(tuple(known_bad))
    lacking = _packs_followed(archive, catalog, dropped, dict(new), everywhere, doubts)
    if lacking - catalog.spoilt():  # listed nowhere, or only in a pack that was thought to be dead
        with closing(derive.unlisted(archive, catalog, sorted(lacking))) as unlisted:
            catalog.rollback()
            known = Remembered.of(catalog)
            catalog.close()
            return rebuild(archive, now, known, missing, unlisted)
    losses.conclude(archive, catalog, now, lacking)
    return catalog


def _added(archive: "Archive", catalog: ChunkCatalog, now: Listing) -> bool:
    """Whether there are only sessions more, or written again, and nothing is missing of them; then
    the catalog is good for them, too.
    """
    again = _written_again(catalog, now) if archive.writing else set()
    names = _more(catalog, now) | again
    if names and not _complete(archive, catalog, names):
        return False
    # A backup of a few small sessions would wait for the disk once more, only to spare the next run
    # a look through them.
    if len(names) > UNRECORDED or again:
        catalog.begin()
        catalog.set_files(now.files, now.seen(now.files))
        catalog.commit()
    else:
        archive.unrecorded += len(names)
    return True


def _packs_followed(
    archive: "Archive",
    catalog: ChunkCatalog,
    gone: Sequence[str],
    new: Mapping[str, int],
    everywhere: bool,
    doubts: derive.Doubts,
) -> set[str]:
    """Take packs out of the catalog and others in, without what is found wrong of the ``doubts``,
    and look for holes in these, or ``everywhere``; not committed. Returns the session files that
    lack chunks then.
    """
    numbers = {name: number for number, name in catalog.packs().items()}
    for name in gone:
        catalog.drop_pack(numbers[name])
    for name, size in sorted(new.items()):
        derive.index_pack(archive, catalog, name, size)
    found = derive.drop_unreferenced(archive, catalog)
    suspects = catalog.packs() if everywhere else {catalog.number(name): name for name in new}
    out = derive.leave_out(archive, catalog, doubts)
    if suspects:
        out += derive.forget_holes(archive, catalog, suspects)
    # What cannot be read now either is damage: it does not make every opening slow.
    catalog.set_sizes({name: new[name] for name in doubts.packs if name in new})
    if out:
        found = derive.lacking_in(archive, catalog, archive.session_files())
    return {name for name, count in found.items() if count}


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
    here = archive.writing and not archive.cramped
    if here:
        workspace.discard(name + TEMPORARY)
        temporary = workspace.database(name + TEMPORARY)
    else:  # others may be reading too, or the disk may be read-only, or full
        archive.temporary = archive.temporary or catalog_file.folder_aside()
        temporary = Path(archive.temporary.name) / f"rebuilt-{name}"
        temporary.unlink(missing_ok=True)
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
    losses.conclude(archive, catalog, now, lacking)
    if not here:
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
