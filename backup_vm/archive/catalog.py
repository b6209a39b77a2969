# SPDX-License-Identifier: GPL-2.0-or-later
"""``catalog.sqlite``: in which pack each chunk is. A cache: deleted or damaged, it is rebuilt
from packs and sessions.

It says for which files it was made (``packs`` and ``files``, names and sizes): it is believed only
where the store has just these (see reconcile.py). Only chunks that a session (or a partial one)
refers to are in ``chunks``, and those of a run now. What nothing refers to any more is
in ``freed``, until its space has been given back: candidates, no more. ``spoilt``: sessions known
to lack chunks, or one that they build on. ``rotten``: where a pack does not hold what its index
says. ``meta``: see marks.py.
"""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from backup_vm.archive.catalog_base import BY_PACK, RANGES, CatalogBase
from wire.chunks import ID_SIZE, ZERO_ID

_BATCH = 500


_Rows = list[tuple[Any, ...]]


def _typed(rows: _Rows, *kinds: type) -> _Rows:
    """The rows, all of whose columns are of these types: SQLite keeps whatever was written. Raises
    sqlite3.DatabaseError.
    """
    for kind, column in zip(kinds, zip(*rows, strict=True), strict=False):
        if set(map(type, column)) - {kind}:
            raise sqlite3.DatabaseError("a value is of another type than its column's")
    return rows


class Place(NamedTuple):
    """Where a sealed chunk is: pack file, offset and length of the sealed bytes."""

    pack: str
    offset: int
    length: int


class ChunkCatalog(CatalogBase):
    """The open catalog. sqlite3.DatabaseError from any method means that it must be rebuilt."""

    def add_pack(self, name: str, size: int, number: int | None = None) -> int:
        """Give a pack of so many bytes a number, this one or the next."""
        row = self._db.execute(
            "INSERT INTO packs (number, name, size) VALUES (?, ?, ?)", (number, name, size)
        )
        return int(row.lastrowid or 0)

    def packs(self) -> dict[int, str]:
        """All packs by number."""
        return dict(self._db.execute("SELECT number, name FROM packs"))

    def number(self, name: str) -> int:
        """The number of a pack."""
        return int(self._db.execute("SELECT number FROM packs WHERE name=?", (name,)).fetchone()[0])

    def drop_pack(self, number: int) -> None:
        """Forget a pack and all that it holds."""
        for table in ("chunks", "freed"):
            self._db.execute(f"DELETE FROM {table} WHERE pack=?", (number,))  # noqa: S608 (names from the line above)
        name = "(SELECT name FROM packs WHERE number=?)"
        self._db.execute(f"DELETE FROM rotten WHERE pack={name}", (number,))  # noqa: S608
        self._db.execute("DELETE FROM packs WHERE number=?", (number,))

    def add_all(self, pack: int, chunks: Sequence[tuple[bytes, int, int]]) -> list[bytes]:
        """Add chunks of a pack, given as id, offset and length; returns the ids that are there
        already, in whichever pack.
        """
        rows = [(chunk_id, pack, offset, length) for chunk_id, offset, length in chunks]
        if self._db.executemany(
            "INSERT OR IGNORE INTO chunks VALUES (?, ?, ?, ?)", rows
        ).rowcount == len(rows):
            return []
        mine, twice = self.in_pack(pack), []
        for chunk_id, offset, _ in chunks:
            if mine.get(offset) != chunk_id:
                twice.append(chunk_id)
        return twice

    def fill(self, parts: Iterable[Iterable[tuple[bytes, int, int, int]]]) -> None:
        """Add all chunks of an empty catalog, given as id, pack, offset and length, in the order of
        their ids: ten million in another order, each at a random place of the tree, take 212 s.
        """
        self._db.execute("DROP INDEX chunks_by_pack")
        for rows in parts:
            self._db.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?)", rows)
        self._db.execute(BY_PACK)

    def put(self, chunk_id: bytes, pack: int, offset: int, length: int) -> None:
        """Add a chunk, or say where it is now."""
        self._db.execute(
            "INSERT OR REPLACE INTO chunks VALUES (?, ?, ?, ?)", (chunk_id, pack, offset, length)
        )

    def remove(self, *ids: bytes) -> None:
        """Forget chunks."""
        self._db.executemany("DELETE FROM chunks WHERE id=?", ((chunk_id,) for chunk_id in ids))

    def has(self, chunk_id: bytes) -> bool:
        """Whether a chunk is stored."""
        return (
            self._db.execute("SELECT 1 FROM chunks WHERE id=?", (chunk_id,)).fetchone() is not None
        )

    def lacking(self, ids: Iterable[bytes]) -> int:
        """How many of the ids are not stored."""
        wanted, found = list(set(ids)), 0
        for at in range(0, len(wanted), _BATCH):
            part = wanted[at : at + _BATCH]
            query = f"SELECT count(*) FROM chunks WHERE id IN ({','.join('?' * len(part))})"  # noqa: S608
            found += int(self._db.execute(query, part).fetchone()[0])
        return len(wanted) - found

    def places(self, ids: Iterable[bytes]) -> dict[bytes, Place]:
        """Where chunks are; those not stored are missing from the answer. May be called from
        several threads at once.
        """
        wanted, found = list(set(ids)), {}
        for at in range(0, len(wanted), _BATCH):
            part = wanted[at : at + _BATCH]
            marks = ",".join("?" * len(part))
            query = (
                "SELECT id, name, offset, length FROM chunks JOIN packs ON number = pack"  # noqa: S608
                f" WHERE id IN ({marks})"
            )
            with self._lock:  # a connection keeps its statements, and two threads would share one
                rows = self._db.execute(query, part).fetchall()
            for chunk_id, name, offset, length in _typed(rows, bytes, str, int, int):
                found[chunk_id] = Place(name, offset, length)
        return found

    def count(self) -> tuple[int, int]:
        """Chunks stored and their sealed bytes."""
        chunks, size = self._db.execute(
            "SELECT count(*), coalesce(sum(length), 0) FROM chunks"
        ).fetchone()
        return int(chunks), int(size)

    def lengths(self) -> Iterator[tuple[bytes, list[int]]]:
        """Ids of all chunks in their order, one after another, and the length of each, in parts of
        bounded size.
        """
        rows = self._db.execute("SELECT id, length FROM chunks ORDER BY id")
        while part := _typed(rows.fetchmany(1 << 14), bytes, int):
            if any(len(chunk_id) != ID_SIZE for chunk_id, _ in part):
                raise sqlite3.DatabaseError("an id is of another length than ids are")
            yield b"".join(chunk_id for chunk_id, _ in part), [length for _, length in part]

    def digest(self) -> bytes:
        """Digest of the ids of all chunks; does not depend on which of several copies the catalog
        names.
        """
        digest = hashlib.blake2b(digest_size=16)
        rows = self._db.execute("SELECT id FROM chunks ORDER BY id")
        while part := _typed(rows.fetchmany(1 << 14), bytes):
            digest.update(b"".join(chunk_id for (chunk_id,) in part))
        return digest.digest()

    def in_pack(self, number: int) -> dict[int, bytes]:
        """Ids of the chunks in a pack, by offset."""
        rows = self._db.execute("SELECT offset, id FROM chunks WHERE pack=?", (number,))
        return dict(_typed(rows.fetchall(), int, bytes))

    def ids_in(self, number: int) -> set[bytes]:
        """The ids alone, which are in the index by pack: of all packs that is one reading of it,
        and not a look for each chunk.
        """
        rows = self._db.execute("SELECT id FROM chunks WHERE pack=?", (number,))
        return {chunk_id for (chunk_id,) in rows}

    def chunks_in(self, number: int) -> list[tuple[bytes, int, int]]:
        """Id, offset and length of each chunk in a pack, by offset."""
        rows = self._db.execute(
            "SELECT id, offset, length FROM chunks WHERE pack=? ORDER BY offset", (number,)
        )
        return _typed(rows.fetchall(), bytes, int, int)

    def suspect(self, ids: Iterable[bytes]) -> None:
        """Note, within a transaction, that perhaps nothing refers to these any more."""
        self._db.execute(f"CREATE TEMP TABLE IF NOT EXISTS suspects {RANGES}")
        rows = ((chunk_id,) for chunk_id in ids)
        self._db.executemany(
            "INSERT INTO suspects SELECT pack, offset, length FROM chunks WHERE id=?", rows
        )

    def suspect_nothing(self) -> None:
        """Forget that."""
        self._db.execute("DROP TABLE IF EXISTS suspects")

    def _freed(self) -> str:
        here = "SELECT name FROM temp.sqlite_master WHERE name='suspects'"
        both = "SELECT * FROM freed UNION ALL SELECT * FROM suspects"
        return f"({both})" if self._db.execute(here).fetchone() else "freed"

    def packs_with_freed(self) -> list[int]:
        """Numbers of the packs in which chunks are freed, or suspected to be."""
        there = "pack IN (SELECT number FROM packs)"
        query = f"SELECT DISTINCT pack FROM {self._freed()} WHERE {there} ORDER BY pack"  # noqa: S608
        return [row[0] for row in self._db.execute(query)]

    def freed_in(self, number: int) -> list[tuple[int, int]]:
        """Offset and length of each such chunk in a pack, by offset."""
        query = f"SELECT DISTINCT offset, length FROM {self._freed()} WHERE pack=? ORDER BY offset"  # noqa: S608
        return _typed(self._db.execute(query, (number,)).fetchall(), int, int)

    def set_freed(self, pack: int, ranges: Iterable[tuple[int, int]]) -> None:
        """Say what is freed in a pack, in place of what was said before."""
        self._db.execute("DELETE FROM freed WHERE pack=?", (pack,))
        rows = ((pack, offset, length) for offset, length in ranges)
        self._db.executemany("INSERT INTO freed VALUES (?, ?, ?)", rows)

    def complete(self, references: Iterable[Iterable[bytes]]) -> bool:
        """Whether all that is referred to is stored.

        Both trees are gone through in the order of ids: looking up each id by itself takes ten
        times as long, and a wait for the disk where the catalog is larger than memory.
        """
        alone = not self._db.in_transaction  # then each row would be a transaction
        self.begin()
        try:
            with self._referenced(references):
                return self._complete()
        finally:
            if alone:
                self.commit()

    def drop_unreferenced(self, references: Iterable[Iterable[bytes]]) -> tuple[int, bool]:
        """Take every chunk that is not among the references out; returns how many, and whether all
        that is referred to is stored.
        """
        # The length is no column of the index by pack, in whose order SQLite would go otherwise.
        unreferenced = "+length IS NOT NULL AND id NOT IN (SELECT id FROM referenced)"
        with self._referenced(references):
            complete = self._complete()
            dropped = self._db.execute(f"DELETE FROM chunks WHERE {unreferenced}")  # noqa: S608
            return dropped.rowcount, complete

    def _complete(self) -> bool:
        lacking = "SELECT 1 FROM referenced WHERE id != ? AND id NOT IN (SELECT id FROM chunks)"
        return self._db.execute(f"{lacking} LIMIT 1", (ZERO_ID,)).fetchone() is None

    @contextmanager
    def _referenced(self, references: Iterable[Iterable[bytes]]) -> Iterator[None]:
        """Have these ids, each once, in a table on disk."""
        self._db.execute("CREATE TEMP TABLE referenced (id BLOB PRIMARY KEY) WITHOUT ROWID")
        self._db.execute("CREATE TEMP TABLE listed (id BLOB)")
        try:
            for ids in references:
                self._db.executemany(
                    "INSERT INTO listed VALUES (?)", ((chunk_id,) for chunk_id in ids)
                )
            # In order of ids, because insertion at random takes longer.
            self._db.execute("INSERT OR IGNORE INTO referenced SELECT id FROM listed ORDER BY id")
            yield
        finally:
            self._db.execute("DROP TABLE IF EXISTS listed")
            self._db.execute("DROP TABLE IF EXISTS referenced")
