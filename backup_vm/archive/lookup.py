# SPDX-License-Identifier: GPL-2.0-or-later
"""Sealed chunks by id: where the catalog says or, when it is found to be wrong, where the packs
themselves say.

The catalog is beside the files that it describes: whoever can write to these can write to it, and
a bad bit in it is as likely as in them. What it says is checked where it is used, and damage to it
is never damage to a session.
"""

import sqlite3
from collections.abc import Iterable
from typing import TYPE_CHECKING

from backup_vm.archive import catalog_file, packs
from backup_vm.archive.looking import LOOKS
from backup_vm.errors import DamagedError

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive
    from backup_vm.archive.catalog import Place
    from backup_vm.archive.sessions import Session


def places(archive: "Archive", session: "Session", ids: Iterable[bytes]) -> "dict[bytes, Place]":
    """Where chunks of a session are; those not stored are missing from the answer.

    The catalog may be older than the session, which another machine has stored since: then what is
    missing is looked for in the archive as it is now. Where nothing is known to be spoilt nothing
    can be missing, and a catalog that says so is made again first.
    """
    wanted = set(ids)
    try:
        found = archive.catalog.places(wanted)
        if len(found) == len(wanted) or (
            archive.catalog.spoilt() and archive.looking.catalog_knows(session)
        ):
            return found
        if archive.looking.removed(session):  # nothing needs them any more
            return found
        found = archive.catalog.places(wanted)  # which may be another one now
        if len(found) == len(wanted) or archive.catalog.spoilt():
            return found
    except sqlite3.DatabaseError as error:
        if not catalog_file.is_damage(error) or not archive.doubt_catalog():
            raise
    else:
        if not archive.doubt_catalog():
            return found
    return archive.catalog.places(wanted)


def read(
    archive: "Archive", reader: packs.PackReader, chunk_id: bytes, place: "Place"
) -> memoryview:
    """The sealed chunk that is at a place, as ``places`` gave it, or where it is now; raise
    DamagedError.
    """
    for _ in range(LOOKS):
        try:
            return reader.read(place.pack, chunk_id, place.offset, place.length)
        except DamagedError:
            other = _elsewhere(archive, chunk_id, place)
            if other is None:
                raise
            place = other
    return reader.read(place.pack, chunk_id, place.offset, place.length)


def _elsewhere(archive: "Archive", chunk_id: bytes, place: "Place") -> "Place | None":
    """Another place of a chunk that is not where it should be: another machine may have moved it,
    and the catalog may be wrong.
    """

    def now() -> "Place | None":
        found = archive.catalog.places([chunk_id]).get(chunk_id)
        return None if found == place else found

    other = now() if archive.looking.count else None  # found by another thread
    if other is None and archive.looking.again():
        other = now()
    if other is None and not _is_there(archive, chunk_id, place) and archive.doubt_catalog():
        other = now()
    return other


def _is_there(archive: "Archive", chunk_id: bytes, place: "Place") -> bool:
    """Whether the pack's own index has the chunk there, or cannot be read: then it is the pack that
    is damaged.
    """
    try:
        entries = packs.read_index(archive.storage, place.pack, archive.parameters.archive)
    except DamagedError:
        return True
    return any((e.id, e.offset, e.length) == (chunk_id, *place[1:]) for e in entries)
