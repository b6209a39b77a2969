# SPDX-License-Identifier: GPL-2.0-or-later
"""Scrub: every file of the archive against its checksums, and every chunk that a session needs. No
key is needed.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

from backup_vm.archive import (
    catalog_file,
    derive,
    losses,
    name_index,
    naming,
    notes,
    packs,
    reconcile,
    sessions,
)
from backup_vm.archive.archive import Archive
from backup_vm.archive.image import split
from backup_vm.archive.pack_check import Checked, check
from backup_vm.errors import DamagedError, ForbiddenError
from backup_vm.terminal.progress import Progress
from common.pipeline import in_order


class Finding(NamedTuple):
    """Something damaged: a file, what is wrong with it, and the sessions (file names) that it
    spoils.
    """

    file: str
    problem: str
    sessions: tuple[str, ...] = ()


class Repair(Protocol):
    """What mends files by their parity, and looks whether that still fits them."""

    def mend(self, name: str) -> bool:
        """Mend a damaged file, if that can be done."""

    def compare(self, name: str) -> None:
        """Look whether a file is what its parity was made of."""

    def sessions(self) -> None:
        """Mend what the catalog is compared with: sessions that are damaged or missing, and packs
        whose index is damaged.
        """

    def conclude(self) -> None:
        """Mend packs that are missing; bring the catalog to what was mended."""


def scrub(
    archive: Archive,
    progress: Progress,
    chosen: Sequence[str] | None = None,
    repair: Repair | None = None,
) -> Iterator[Finding]:
    """Check everything, or of the packs only those ``chosen``, yielding what is wrong and could not
    be mended. Chunks that are damaged leave the catalog, to be sent again.
    """
    if repair is not None:
        repair.sessions()
    yield from _catalog(archive)
    try:
        notes.load(archive.storage)
    except (DamagedError, OSError) as error:
        yield Finding(notes.NAME, str(error))
    yield from _sessions(archive, repair)
    yield from _names(archive)
    names = archive.pack_files() if chosen is None else chosen
    sizes = archive.storage.sizes("packs")
    progress.start(sum(max(sizes.get(name, 0), 0) for name in names))
    numbers = {name: number for number, name in archive.catalog.packs().items()}
    for name, live, found in _looked_at(archive, names, numbers):
        try:
            yield from _pack(archive, name, live, found, repair)
        except (DamagedError, OSError) as error:
            if repair is None or not repair.mend(name):
                yield from _unreadable(archive, name, numbers.get(name), error)
        progress.advance(max(sizes.get(name, 0), 0))
        if repair is not None:
            repair.compare(name)
    if repair is not None:
        repair.conclude()
    yield from _missing(archive)


def foreign(archive: Archive) -> Iterator[str]:
    """A line for each file that is not ours, where ours are: no damage, for nothing reads it."""
    for name in naming.foreign(archive.storage):
        yield f"{archive.storage.describe(name)} is not a file of sparsebak's; it is ignored"


def _catalog(archive: Archive) -> Iterator[Finding]:
    """The catalog is a cache: it is compared with what it is made from, and rebuilt if it
    differs.
    """
    problem = ""
    before = b""
    try:
        if not archive.catalog.whole():
            problem = "it was damaged"
        before = archive.catalog.digest()
        if not problem and reconcile.true_digest(archive) != before:
            problem = "it did not list the chunks that there are"
        if not problem and _misplaces(archive):
            problem = "it did not say where the chunks are"
    except sqlite3.DatabaseError as error:
        if not catalog_file.is_damage(error):
            raise
        problem = f"it was damaged ({error})"
    if problem:
        archive.rebuild_catalog()
        where = archive.storage.workspace.describe(catalog_file.NAME)
        yield Finding(catalog_file.NAME, f"{where}: {problem}; it has been rebuilt")


def _misplaces(archive: Archive) -> bool:
    """Whether the catalog puts a chunk where its pack's index has none, or into a pack that it does
    not list.
    """
    listed, numbers = 0, {name: number for number, name in archive.catalog.packs().items()}
    for name, entries in packs.indexes(archive.storage, numbers, archive.parameters.archive):
        rows = archive.catalog.chunks_in(numbers[name])
        listed += len(rows)
        if isinstance(entries, Exception):
            continue  # reported when the pack is looked at
        if not {(entry.id, entry.offset, entry.length) for entry in entries}.issuperset(rows):
            return True
    return listed != archive.catalog.count()[0]


def _sessions(archive: Archive, repair: Repair | None) -> Iterator[Finding]:
    """Session files against their checksums, and whether what they build on is there."""
    bad: dict[str, str] = {}
    for name in archive.session_files():
        try:
            sessions.check(archive.storage, sessions.load(archive.storage, name))
        except (DamagedError, OSError) as error:
            archive.note_damage(name, error)
            bad[name] = str(archive.damaged[name])
        if repair is not None:
            repair.compare(name)
    volumes = archive.sessions()
    bad |= {name: reason for name, reason in archive.cut_off(volumes).items() if name not in bad}
    losses.spoil(archive.catalog, bad, volumes)
    for name, reason in bad.items():
        yield Finding(name, reason, (name,))


def _names(archive: Archive) -> Iterator[Finding]:
    """Indexes of names against their checksums. One that is damaged is of no use, and whoever has
    the key can make it again: it is removed.
    """
    for name in name_index.names_in(archive.storage):
        try:
            name_index.check(archive.storage, name)
            name_index.load(archive.storage, name, archive.parameters.archive)
        except (DamagedError, OSError) as error:
            text = str(error)
            with suppress(DamagedError, OSError, ForbiddenError):
                archive.storage.remove(name)
                text += "; it has been removed; to make it again: sparsebak files index"
            yield Finding(name, text)


def _unreadable(
    archive: Archive, name: str, number: int | None, error: Exception
) -> Iterator[Finding]:
    """A pack with a place that the disk does not give: what cannot be read there is lost."""
    live = archive.catalog.in_pack(number) if number is not None else {}
    lost = []
    with packs.PackReader(archive.storage) as reader:
        for _, offset, length in archive.catalog.chunks_in(number) if number is not None else ():
            try:
                reader.read(name, live[offset], offset, length)
            except (DamagedError, OSError):
                lost.append(offset)
    text = str(error)
    if isinstance(error, OSError):
        text = f"{archive.storage.describe(name)} cannot be read: {error.strerror or error}"
    users = _forget(archive, name, [(o, live[o]) for o in lost])
    yield Finding(
        name, text, tuple(naming.sessions_in({file for one in users.values() for file in one}))
    )


_Look = tuple[str, dict[int, bytes], "Checked | Exception"]


def _looked_at(
    archive: Archive, names: Sequence[str], numbers: Mapping[str, int]
) -> Iterator[_Look]:
    """Each pack with the chunks in it that are needed, by offset, and what was found, or why it
    cannot be read. Several are read at once where that is quicker.
    """

    def look(one: tuple[str, dict[int, bytes]]) -> _Look:
        try:
            return *one, check(archive.storage, one[0], archive.parameters, one[1])
        except (DamagedError, OSError) as error:
            return *one, error

    needed = (
        (name, archive.catalog.in_pack(numbers[name]) if name in numbers else {}) for name in names
    )
    return in_order(look, needed, archive.storage.readers, archive.storage.readers)


def _pack(
    archive: Archive,
    name: str,
    live: dict[int, bytes],
    found: Checked | Exception,
    repair: "Repair | None",
) -> Iterator[Finding]:
    if isinstance(found, Exception):
        raise found
    catalog = archive.catalog
    path = archive.storage.describe(name)
    if not found.sound and repair is not None and repair.mend(name):
        found = check(archive.storage, name, archive.parameters, live)
    if found.problem:
        yield Finding(name, found.problem)
    for offset in found.gaps:
        yield Finding(name, f"{path} is damaged at byte {offset}")
    lost = [(entry.offset, entry.id) for entry in found.bad if entry.offset in live]
    lost += [(offset, live[offset]) for offset in found.wrong]
    users = _forget(archive, name, lost) if lost else {}
    known = {offset for pack, offset in catalog.rotten() if pack == name}
    # Reported once: what no session needs stays where it is until its room is given back.
    dead = [e.offset for e in found.bad if e.offset not in live and e.offset not in known]
    _note_rotten(archive, name, dead)
    for entry in found.bad:
        text = f"{path} is damaged at byte {entry.offset} (chunk {entry.id.hex()[:16]})"
        if entry.offset in live:
            yield Finding(name, text, users[entry.id])
        elif entry.offset in dead:
            yield Finding(name, f"{text}, which no session needs")
    for offset in found.wrong:
        text = f"{path} does not hold chunk {live[offset].hex()[:16]} at byte {offset}"
        yield Finding(name, text, users[live[offset]])


def _forget(
    archive: Archive, pack: str, chunks: list[tuple[int, bytes]]
) -> dict[bytes, tuple[str, ...]]:
    """Take damaged chunks (offset and id) of a pack out of the catalog, so that the next backup
    stores them again.

    Returns the sessions that list each of them, found in one reading of all sessions for the whole
    pack; their volumes get a full session next.
    """
    catalog, users = archive.catalog, _users(archive, {chunk_id for _, chunk_id in chunks})
    catalog.begin()
    catalog.add_rotten((pack, offset) for offset, _ in chunks)
    catalog.remove(*(chunk_id for _, chunk_id in chunks))
    spoilt = naming.sessions_in({file for one in users.values() for file in one})
    losses.spoil(catalog, spoilt, archive.sessions())
    catalog.marks.unclaimed = True
    catalog.commit()
    return users


def _note_rotten(archive: Archive, pack: str, offsets: list[int]) -> None:
    """Remember that what no session needs is damaged."""
    if offsets:
        archive.catalog.begin()
        archive.catalog.add_rotten((pack, offset) for offset in offsets)
        archive.catalog.commit()


def _users(archive: Archive, wanted: set[bytes]) -> dict[bytes, tuple[str, ...]]:
    """Of each of these chunks the session files that list it."""
    users: dict[bytes, dict[str, None]] = {chunk_id: {} for chunk_id in wanted}
    for name, ids in derive.columns(archive, _readable(archive)):
        for chunk_id in wanted.intersection(split(ids)):
            users[chunk_id][name] = None
    return {chunk_id: tuple(names) for chunk_id, names in users.items()}


def _missing(archive: Archive) -> Iterator[Finding]:
    """Chunks that a session lists and no pack holds."""
    catalog, names = archive.catalog, _readable(archive)
    if catalog.complete(split(ids) for _, ids in derive.columns(archive, names)):
        return
    for name, lacking in derive.lacking_in(archive, catalog, names).items():
        if lacking:
            losses.spoil(catalog, [name], archive.sessions(naming.volume_of(name)))
            yield Finding(
                name,
                f"{archive.storage.describe(name)}: {lacking} of its chunks are missing or damaged",
                (name,),
            )


def _readable(archive: Archive) -> list[str]:
    """Session files, without those that have been found damaged already."""
    return [name for name in archive.session_files() if name not in archive.damaged]
