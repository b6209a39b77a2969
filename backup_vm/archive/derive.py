# SPDX-License-Identifier: GPL-2.0-or-later
"""What the catalog must hold, from the packs' own indexes and the sessions: parts of what
reconcile.py does.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import compress
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from backup_vm.archive import catalog_file, naming, packs, references, sessions
from backup_vm.archive.catalog import ChunkCatalog
from backup_vm.archive.catalog_base import UNREADABLE
from backup_vm.archive.catalog_file import GATHERED
from backup_vm.archive.holes import holes, may_have_holes
from backup_vm.archive.image import split
from backup_vm.archive.storage import TEMPORARY
from backup_vm.errors import DamagedError, UnreadableError
from common.existing import exists
from wire.chunks import ZERO_ID

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive
    from backup_vm.archive.columns import Ids
    from backup_vm.archive.gathering import Gathering


class Doubts(NamedTuple):
    """What packs may not hold although their indexes say so: places that were found ``rotten``
    (pack and offset), and ``packs`` of which only that is known that they have such places, or
    that they could not be read.

    ``unlisted``: a file of ids that the catalog did not list before. A session that was put back
    may need what was given back since; where the pack was copied since, no hole tells.
    """

    rotten: tuple[tuple[str, int], ...] = ()
    packs: tuple[str, ...] = ()
    unlisted: IO[bytes] | None = None


def derived(
    archive: "Archive", path: Path, names: Mapping[str, int], doubts: Doubts
) -> tuple[ChunkCatalog, dict[str, int]]:
    """A new catalog of what packs hold and sessions need, in these packs (sizes by name) and not
    where that is doubtful and not so, its transaction open; and how many chunks each session lacks.

    While it is not known what all sessions refer to, all that packs hold is in it. A writer leaves
    what it has gathered beside the catalog, until the new one is in its place, and takes up what it
    finds there.
    """
    if not names and not references.files(archive):
        # Of a new archive. What reads columns takes 15 MiB, and a tenth of a second, which the
        # first backup would have to the end, beside all that it needs itself.
        path.unlink(missing_ok=True)
        return ChunkCatalog.create(path, archive.parameters.archive), {}
    from backup_vm.archive.gathering import Gathering  # most runs rebuild nothing

    if archive.writing and path.name.endswith(TEMPORARY):
        found = _resumable(archive, path, names, doubts)
        if found is not None:
            return found
    with catalog_file.folder_aside() as folder:
        place = Path(folder) / GATHERED
        with Gathering.at(place, archive.parameters.archive, {}) as gathering:
            return _derived(archive, path, names, doubts, gathering)


def _resumable(
    archive: "Archive", path: Path, names: Mapping[str, int], doubts: Doubts
) -> tuple[ChunkCatalog, dict[str, int]] | None:
    """As ``derived``, by what is gathered beside the catalog, so that a rebuild that is cut off is
    resumed; None where that disk is full, or what is gathered is damaged again and again.
    """
    from backup_vm.archive.gathering import Gathering

    warned = len(archive.warnings)
    for again in (False, True):
        try:
            place = _place_to_resume(archive, names)
            with Gathering.at(place, archive.parameters.archive, names, again) as gathering:
                catalog, lacking = _derived(archive, path, names, doubts, gathering)
            # What was found there says of no chunk that it is lost: then all packs are read
            # again, and that reading is resumed, too, if it is cut off.
            if not gathering.resumed or gathering.again or not any(lacking.values()):
                return catalog, lacking
            catalog.close()
            full = False
        except sqlite3.DatabaseError as error:
            full = getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"
            if not full and not (catalog_file.is_damage(error) and exists(place)):
                raise
        archive.storage.workspace.discard(GATHERED)
        del archive.warnings[warned:]
        if full:
            break
    return None


def _place_to_resume(archive: "Archive", names: Mapping[str, int]) -> Path:
    """Where a writer gathers, without anything there that is of no use."""
    from backup_vm.archive.gathering import Gathering

    workspace = archive.storage.workspace
    try:
        place = workspace.database(GATHERED)
        if Gathering.fits(place, archive.parameters.archive, names):
            return place
    except DamagedError:
        pass
    workspace.discard(GATHERED)
    return workspace.database(GATHERED)


def _derived(
    archive: "Archive",
    path: Path,
    names: Mapping[str, int],
    doubts: Doubts,
    gathering: "Gathering",
) -> tuple[ChunkCatalog, dict[str, int]]:
    unread = _gather(archive, names, gathering)
    files = references.files(archive)
    numbers = {name: number for number, name in enumerate(files)}
    for name, column in columns(archive, files):
        gathering.add_listed(numbers[name], column[column.any(axis=1)])
    path.unlink(missing_ok=True)
    catalog = ChunkCatalog.create(path, archive.parameters.archive)
    try:
        for name in sorted(names):
            size = UNREADABLE if name in unread else names[name]
            catalog.add_pack(name, size, gathering.packs[name][0])
        lacking = _fill(archive, catalog, gathering, files)
        out = leave_out(archive, catalog, doubts)
        out += forget_holes(archive, catalog, catalog.packs())
        listing = [name for name in files if naming.is_session(name)]
        if out:
            return catalog, lacking_in(archive, catalog, listing)
        return catalog, {name: lacking[name] for name in listing}
    except BaseException:
        catalog.close()
        raise


def _fill(
    archive: "Archive", catalog: ChunkCatalog, gathering: "Gathering", files: list[str]
) -> dict[str, int]:
    """Bring what was gathered into the catalog; returns how many chunks each of the files lacks."""
    # Known only when all of them were read: one that turned out to be damaged on the way may refer
    # to any chunk.
    every, lacking = bool(archive.damaged), dict.fromkeys(files, 0)
    unclaimed, names = False, catalog.packs()

    def parts(reader: packs.PackReader) -> Iterator[Iterable[tuple[bytes, int, int, int]]]:
        nonlocal unclaimed
        for part in gathering.parts(names):
            for number, count in part.lacking.items():
                lacking[files[number]] += count
            unclaimed |= bool(part.twice) or (not every and not all(part.listed))
            yield part.rows if every else compress(part.rows, part.listed)
            # Here, not at the end: what was stored again after it was freed may be many.
            for chunk_id, number, offset, length in part.twice:
                if catalog.has(chunk_id):
                    entry = packs.Packed(chunk_id, offset, length, b"")
                    _choose(catalog, reader, names, entry, number)

    with packs.PackReader(archive.storage) as reader:
        catalog.fill(parts(reader))
    catalog.marks.unclaimed = unclaimed
    return lacking


def _gather(archive: "Archive", names: Mapping[str, int], gathering: "Gathering") -> set[str]:
    """Read what packs hold; returns the names of those that could not be read."""
    unread = set[str]()
    left = [name for name in sorted(names) if name not in gathering.packs]
    for name, index in packs.indexes(archive.storage, left, archive.parameters.archive):
        indexed = not isinstance(index, Exception)
        if isinstance(index, UnreadableError):
            unread.add(name)
        gathering.add_pack(name, names[name], _entries(archive, name, index), indexed)
    gathering.keep()
    return unread


def drop_unreferenced(archive: "Archive", catalog: ChunkCatalog) -> dict[str, int]:
    """Take out what nothing refers to, in one reading of all sessions; returns how many chunks each
    session lacks that lacks any, for which they are read again.

    Nothing is taken out while it is not known what all of them refer to.
    """
    columns = (ids for _, ids in _ids(archive, references.files(archive)))
    catalog.savepoint()
    dropped, complete = catalog.drop_unreferenced(columns)
    # Known only when all of them were read: one that turned out to be damaged on the way may refer
    # to any chunk.
    if archive.damaged:
        catalog.undo()
    elif dropped:
        catalog.marks.unclaimed = True
    return {} if complete else lacking_in(archive, catalog, archive.session_files())


def lacking_in(archive: "Archive", catalog: ChunkCatalog, names: Iterable[str]) -> dict[str, int]:
    """How many chunks each of these sessions lacks."""
    found: dict[str, int] = {}
    for name, ids in _ids(archive, names):
        found[name] = found.get(name, 0) + catalog.lacking(set(ids) - {ZERO_ID})
    return found


def damaged(archive: "Archive", names: Iterable[str]) -> dict[str, str]:
    """Of these session files those that are not what their digests say, with the reason."""
    found = {}
    for name in names:
        try:
            sessions.check(archive.storage, sessions.load(archive.storage, name))
        except (DamagedError, OSError) as error:
            found[name] = str(error)
    return found


def unlisted(archive: "Archive", catalog: ChunkCatalog, names: Iterable[str]) -> IO[bytes]:
    """A file of the ids that these sessions list and the catalog does not."""
    file = archive.storage.workspace.scratch()
    try:
        for _, ids in _ids(archive, names):
            wanted = set(ids) - {ZERO_ID}
            file.write(b"".join(wanted - catalog.places(wanted).keys()))
    except BaseException:
        file.close()
        raise
    return file


def _ids(archive: "Archive", names: Iterable[str]) -> Iterator[tuple[str, list[bytes]]]:
    for name, column in columns(archive, names):
        yield name, split(column)


def columns(archive: "Archive", names: Iterable[str]) -> "Iterator[tuple[str, Ids]]":
    """The chunk ids in these files that refer to chunks, in slices: uint8[n, 32], each with its
    file's name. None come from where one cannot be read, which is noted.
    """
    names = list(names)
    with suppress(FileNotFoundError):
        archive.storage.fetch([name for name in names if naming.is_session(name)])
    for name in names:
        try:
            for column in references.ids(archive, name):
                yield name, column
        except (DamagedError, FileNotFoundError) as error:
            archive.note_damage(name, error)


def index_pack(archive: "Archive", catalog: ChunkCatalog, name: str, size: int) -> None:
    """Read a pack in; one that cannot be read is looked at again at the next opening."""
    ((_, index),) = packs.indexes(archive.storage, [name], archive.parameters.archive)
    if isinstance(index, UnreadableError):
        size = UNREADABLE
    number, entries = catalog.add_pack(name, size), _entries(archive, name, index)
    twice = set(catalog.add_all(number, [(e.id, e.offset, e.length) for e in entries]))
    names = catalog.packs() if twice else {}
    with packs.PackReader(archive.storage) as reader:
        for entry in entries if twice else ():
            if entry.id in twice:
                _choose(catalog, reader, names, entry, number)
                catalog.marks.unclaimed = True


def _entries(
    archive: "Archive", name: str, index: list[packs.Packed] | Exception
) -> list[packs.Packed]:
    """What is in a pack, also where its index is damaged."""
    if not isinstance(index, Exception):
        return index
    if not isinstance(index, DamagedError):
        raise index
    archive.warnings.append(f"{index}; its chunks were found without it")
    return list(packs.scan(archive.storage, name, archive.parameters.chunk_size))


def _choose(
    catalog: ChunkCatalog,
    reader: packs.PackReader,
    names: Mapping[int, str],
    entry: packs.Packed,
    number: int,
) -> None:
    """Two packs have this chunk, and one of the two may be a hole or damaged: keep a sound one.
    ``names``: of the packs, by number.
    """
    other = catalog.places([entry.id]).get(entry.id)  # in no pack that there is, at times
    if other is None or (
        reader.sound(names[number], entry)
        and not reader.sound(other.pack, entry._replace(offset=other.offset, length=other.length))
    ):
        catalog.put(entry.id, number, entry.offset, entry.length)


def leave_out(archive: "Archive", catalog: ChunkCatalog, doubts: Doubts) -> int:
    """Take out what is not there, although packs' indexes say so; packs may have been put back from
    a copy. Returns how many places.
    """
    left_out = 0
    numbers = {name: number for number, name in catalog.packs().items()}
    places: dict[str, set[int]] = {name: set() for name in doubts.packs}
    for name, offset in doubts.rotten:
        places.setdefault(name, set()).add(offset)
    for part in references.parts(doubts.unlisted):
        for place in catalog.places(part).values():
            places.setdefault(place.pack, set()).add(place.offset)
    with packs.PackReader(archive.storage) as reader:
        for name in places.keys() & numbers.keys():
            every, known = name in doubts.packs, places[name]
            for row in catalog.chunks_in(numbers[name]):
                entry = packs.Packed(*row, b"")
                if (every or entry.offset in known) and _sound(reader, name, entry):
                    known.discard(entry.offset)
                elif every:
                    known.add(entry.offset)
            catalog.add_rotten((name, offset) for offset in sorted(known))
            left_out += len(known)
    return left_out


def _sound(reader: packs.PackReader, name: str, entry: packs.Packed) -> bool:
    try:
        return reader.sound(name, entry)
    except OSError:  # a bad sector
        return False


def forget_holes(archive: "Archive", catalog: ChunkCatalog, suspects: dict[int, str]) -> int:
    """Take out what is in holes of these packs; returns how many chunks. Packs that cannot be read
    are looked at again at the next opening.
    """
    forgotten, unread = 0, set[str]()
    for number, name in suspects.items():
        if not may_have_holes(archive, name):
            continue
        entries = [packs.Packed(*row, b"") for row in catalog.chunks_in(number)]
        hollow = holes(archive, name, entries, unread)
        gone = [e.id for e, h in zip(entries, hollow, strict=True) if h]
        catalog.remove(*gone)
        forgotten += len(gone)
    catalog.doubt_packs(unread)
    return forgotten
