# SPDX-License-Identifier: GPL-2.0-or-later
"""What the catalog must hold, from the packs' own indexes and the sessions: parts of what
reconcile.py does.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from backup_vm.archive import naming, packs, references
from backup_vm.archive.catalog import ChunkCatalog
from backup_vm.archive.image import split
from backup_vm.archive.reclaim import holes
from backup_vm.errors import DamagedError
from wire.chunks import ZERO_ID

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive


def built(archive: "Archive", path: Path, names: Mapping[str, int]) -> ChunkCatalog:
    """All that packs hold; the transaction is open."""
    catalog = ChunkCatalog.create(path, archive.parameters.archive)
    catalog.begin()
    numbered = ((catalog.add_pack(name, names[name]), name) for name in sorted(names))
    twice = catalog.fill(
        (e.id, number, e.offset, e.length)
        for number, name in numbered
        for e in _entries(archive, name)
    )
    with packs.PackReader(archive.storage) as reader:
        for chunk_id, number, offset, length in twice:
            _choose(catalog, reader, packs.Packed(chunk_id, offset, length, b""), number)
    catalog.marks.unclaimed = bool(twice)
    return catalog


def drop_unusable(archive: "Archive", catalog: ChunkCatalog) -> dict[str, int]:
    """Take out what nothing refers to, and what is in holes; returns how many chunks each session
    lacks.
    """
    found = drop_unreferenced(archive, catalog)
    if forget_holes(archive, catalog, catalog.packs()):
        return lacking_in(archive, catalog, archive.session_files())
    return found


def drop_unreferenced(archive: "Archive", catalog: ChunkCatalog) -> dict[str, int]:
    """Take out what nothing refers to, in one reading of all sessions; returns how many chunks each
    session lacks.

    Nothing is taken out while it is not known what all of them refer to.
    """
    lacking: dict[str, int] = {}

    def every() -> Iterator[list[bytes]]:
        for name, ids in _ids(archive, references.files(archive)):
            lacking[name] = lacking.get(name, 0) + catalog.lacking(set(ids) - {ZERO_ID})
            yield ids

    catalog.savepoint()
    dropped = catalog.drop_unreferenced(every())
    # Known only when all of them were read: one that turned out to be damaged on the way may refer
    # to any chunk.
    if archive.damaged:
        catalog.undo()
    elif dropped:
        catalog.marks.unclaimed = True
    return {name: count for name, count in lacking.items() if naming.is_session(name)}


def lacking_in(archive: "Archive", catalog: ChunkCatalog, names: Iterable[str]) -> dict[str, int]:
    """How many chunks each of these sessions lacks."""
    found: dict[str, int] = {}
    for name, ids in _ids(archive, names):
        found[name] = found.get(name, 0) + catalog.lacking(set(ids) - {ZERO_ID})
    return found


def _ids(archive: "Archive", names: Iterable[str]) -> Iterator[tuple[str, list[bytes]]]:
    names = list(names)
    with suppress(FileNotFoundError):
        archive.storage.fetch([name for name in names if naming.is_session(name)])
    for name in names:
        try:
            for column in references.ids(archive, name):
                yield name, split(column)
        except (DamagedError, FileNotFoundError) as error:
            archive.note_damage(name, error)


def index_pack(archive: "Archive", catalog: ChunkCatalog, name: str, size: int) -> None:
    """Read a pack in."""
    number, entries = catalog.add_pack(name, size), _entries(archive, name)
    twice = set(catalog.add_all(number, [(e.id, e.offset, e.length) for e in entries]))
    with packs.PackReader(archive.storage) as reader:
        for entry in entries if twice else ():
            if entry.id in twice:
                _choose(catalog, reader, entry, number)
                catalog.marks.unclaimed = True


def _entries(archive: "Archive", name: str) -> list[packs.Packed]:
    try:
        return packs.read_index(archive.storage, name, archive.parameters.archive)
    except DamagedError as error:
        archive.warnings.append(f"{error}; its chunks were found without it")
        return list(packs.scan(archive.storage, name, archive.parameters.chunk_size))


def _choose(
    catalog: ChunkCatalog, reader: packs.PackReader, entry: packs.Packed, number: int
) -> None:
    """Two packs have this chunk, and one of the two may be a hole or damaged: keep a sound one."""
    names = catalog.packs()
    other = catalog.places([entry.id]).get(entry.id)  # in no pack that there is, at times
    if other is None or (
        reader.sound(names[number], entry)
        and not reader.sound(other.pack, entry._replace(offset=other.offset, length=other.length))
    ):
        catalog.put(entry.id, number, entry.offset, entry.length)


def leave_out(archive: "Archive", catalog: ChunkCatalog, rotten: Iterable[tuple[str, int]]) -> None:
    """Take out what was found rotten, unless it is sound now: packs may have been put back from a
    copy.
    """
    numbers = {name: number for number, name in catalog.packs().items()}
    with packs.PackReader(archive.storage) as reader:
        for name, offset in rotten:
            rows = catalog.chunks_in(numbers[name]) if name in numbers else []
            here = [packs.Packed(*row, b"") for row in rows if row[1] == offset]
            if name in numbers and not any(reader.sound(name, entry) for entry in here):
                catalog.add_rotten([(name, offset)])


def forget_holes(archive: "Archive", catalog: ChunkCatalog, suspects: dict[int, str]) -> int:
    """Take out what is in holes of these packs; returns how many chunks."""
    forgotten = 0
    for number, name in suspects.items():
        entries = [packs.Packed(*row, b"") for row in catalog.chunks_in(number)]
        gone = [e.id for e, h in zip(entries, holes(archive, name, entries), strict=True) if h]
        catalog.remove(*gone)
        forgotten += len(gone)
    return forgotten
