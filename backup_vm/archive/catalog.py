"""``catalog.sqlite``: in which pack each chunk lies. A cache: deleted or damaged, it is rebuilt from packs and sessions.

Only chunks that a session (or a partial one) refers to are in ``chunks``. What nothing refers to is in ``freed`` until
its space has been given back, so that a chunk whose space is gone can never be found again.
"""

import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory

NAME = "catalog.sqlite"
VERSION = 1
_BY_PACK = "CREATE INDEX chunks_by_pack ON chunks (pack)"
_SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE packs (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE chunks (id BLOB PRIMARY KEY, pack INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL)
    WITHOUT ROWID;
{_BY_PACK};
CREATE TABLE freed (pack INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL);
"""
_INDEX = "CREATE INDEX IF NOT EXISTS freed_by_pack ON freed (pack)"
_BATCH = 500
_TABLES = {
    "meta": ["key", "value"],
    "packs": ["number", "name"],
    "chunks": ["id", "pack", "offset", "length"],
    "freed": ["pack", "offset", "length"],
}


def folder_aside() -> "TemporaryDirectory[str]":
    """A folder for a catalog aside from the archive's: where SQLite puts its own large files, for /tmp is often memory."""
    import tempfile

    places = (os.environ.get("SQLITE_TMPDIR"), os.environ.get("TMPDIR"), "/var/tmp")  # noqa: S108  # the name in it is random
    where = next((place for place in places if place and os.access(place, os.W_OK | os.X_OK)), None)
    return tempfile.TemporaryDirectory(prefix="sparsebak-", dir=where)


class Place(NamedTuple):
    """Where a sealed chunk lies: pack file, offset and length of the sealed bytes."""

    pack: str
    offset: int
    length: int


class Catalog:
    """The open catalog. sqlite3.DatabaseError from any method means that it must be rebuilt."""

    def __init__(self, path: Path, read_only: bool = False, alone: bool = False) -> None:
        self.path, self._read_only = path, read_only
        self._lock = threading.Lock()
        if read_only:
            self._db = sqlite3.connect(
                f"file:{path}?mode=ro&immutable=1",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
            )
        else:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=TRUNCATE")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA temp_store=FILE")
        if alone:  # the archive's own lock sees to it, so that SQLite need not look for others at every statement
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA cache_size=-16384")

    @classmethod
    def create(cls, path: Path, archive: bytes) -> "Catalog":
        """Make an empty one."""
        for suffix in ("", "-journal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        catalog = cls(path)
        catalog._db.execute("PRAGMA journal_mode=DELETE")
        catalog._db.executescript(_SCHEMA)
        catalog._db.execute(_INDEX)
        catalog.set_meta("version", str(VERSION))
        catalog.set_meta("archive", archive.hex())
        return catalog

    def sound_for(self, archive: bytes) -> bool:
        """Whether this is a catalog of that archive, of this version, as far as a glance tells."""
        for table, expected in _TABLES.items():
            if [row[1] for row in self._db.execute(f"PRAGMA table_info({table})")] != expected:
                return False
        if self.meta("version") != str(VERSION) or self.meta("archive") != archive.hex():
            return False
        if not self._read_only:
            self._db.execute(_INDEX)
        return True

    def whole(self) -> bool:
        """Whether SQLite finds no damage in it."""
        return [row[0] for row in self._db.execute("PRAGMA integrity_check(1)")] == ["ok"]

    def close(self) -> None:
        """Close it; what was begun and not committed is undone."""
        self._db.close()

    def begin(self) -> None:
        """Begin a transaction, unless one is open."""
        if not self._db.in_transaction:
            self._db.execute("BEGIN")

    def commit(self) -> None:
        """Commit the open transaction, durably."""
        if self._db.in_transaction:
            self._db.execute("COMMIT")

    def rollback(self) -> None:
        """Undo the open transaction."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def meta(self, key: str) -> str | None:
        """A remembered value."""
        row = self._db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def set_meta(self, key: str, value: str | None) -> None:
        """Remember a value, or forget it. Nothing is written to forget what is not remembered."""
        if value is not None:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
        elif self.meta(key) is not None:
            self._db.execute("DELETE FROM meta WHERE key=?", (key,))

    def add_pack(self, name: str) -> int:
        """Give a pack a number."""
        return int(self._db.execute("INSERT INTO packs (name) VALUES (?)", (name,)).lastrowid or 0)

    def packs(self) -> dict[int, str]:
        """All packs by number."""
        return dict(self._db.execute("SELECT number, name FROM packs"))

    def drop_pack(self, number: int) -> None:
        """Forget a pack and all that it holds."""
        for table in ("chunks", "freed"):
            self._db.execute(f"DELETE FROM {table} WHERE pack=?", (number,))  # noqa: S608 (names from the line above)
        self._db.execute("DELETE FROM packs WHERE number=?", (number,))

    def add(self, chunk_id: bytes, pack: int, offset: int, length: int) -> bool:
        """Add a chunk; False, and nothing done, when it is there already."""
        row = (chunk_id, pack, offset, length)
        return (
            self._db.execute("INSERT OR IGNORE INTO chunks VALUES (?, ?, ?, ?)", row).rowcount == 1
        )

    def add_all(self, pack: int, chunks: Sequence[tuple[bytes, int, int]]) -> list[bytes]:
        """Add chunks of a pack, given as id, offset and length; returns the ids that are there already, in whichever pack."""
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

    def fill(
        self, chunks: Iterable[tuple[bytes, int, int, int]]
    ) -> list[tuple[bytes, int, int, int]]:
        """Add all chunks of an empty catalog, given as id, pack, offset and length; returns those whose ids came before.

        They are added in the order of their ids: many of them at random take many times as long.
        """
        twice: list[tuple[bytes, int, int, int]] = []

        def once(
            rows: Iterable[tuple[bytes, int, int, int]],
        ) -> Iterator[tuple[bytes, int, int, int]]:
            last = b""
            for row in rows:
                if row[0] == last:
                    twice.append(row)
                else:
                    last = row[0]
                    yield row

        self._db.execute(
            "CREATE TEMP TABLE gathered (id BLOB, pack INTEGER, offset INTEGER, length INTEGER)"
        )
        self._db.executemany("INSERT INTO gathered VALUES (?, ?, ?, ?)", chunks)
        self._db.execute("DROP INDEX chunks_by_pack")
        rows = self._db.execute(
            "SELECT id, pack, offset, length FROM gathered ORDER BY id, pack, offset"
        )
        self._db.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?)", once(rows))
        self._db.execute(_BY_PACK)
        self._db.execute("DROP TABLE gathered")
        return twice

    def put(self, chunk_id: bytes, pack: int, offset: int, length: int) -> None:
        """Add a chunk, or say where it lies now."""
        self._db.execute(
            "INSERT OR REPLACE INTO chunks VALUES (?, ?, ?, ?)", (chunk_id, pack, offset, length)
        )

    def remove(self, chunk_id: bytes) -> None:
        """Forget a chunk."""
        self._db.execute("DELETE FROM chunks WHERE id=?", (chunk_id,))

    def has(self, chunk_id: bytes) -> bool:
        """Whether a chunk is stored."""
        return (
            self._db.execute("SELECT 1 FROM chunks WHERE id=?", (chunk_id,)).fetchone() is not None
        )

    def places(self, ids: Iterable[bytes]) -> dict[bytes, Place]:
        """Where chunks lie; those not stored are missing from the answer. May be called from several threads at once."""
        wanted, found = list(set(ids)), {}
        for at in range(0, len(wanted), _BATCH):
            part = wanted[at : at + _BATCH]
            marks = ",".join("?" * len(part))
            query = f"SELECT id, name, offset, length FROM chunks JOIN packs ON number = pack WHERE id IN ({marks})"  # noqa: S608
            with self._lock:  # a connection keeps its statements, and two threads would share one
                rows = self._db.execute(query, part).fetchall()
            for chunk_id, name, offset, length in rows:
                found[chunk_id] = Place(name, offset, length)
        return found

    def count(self) -> tuple[int, int]:
        """Chunks stored and their sealed bytes."""
        chunks, size = self._db.execute(
            "SELECT count(*), coalesce(sum(length), 0) FROM chunks"
        ).fetchone()
        return int(chunks), int(size)

    def lengths(self) -> Iterator[tuple[bytes, list[int]]]:
        """Ids of all chunks, one after another, and the length of each, in parts of bounded size."""
        rows = self._db.execute("SELECT id, length FROM chunks")
        while part := rows.fetchmany(1 << 14):
            yield b"".join(chunk_id for chunk_id, _ in part), [length for _, length in part]

    def digest(self) -> bytes:
        """Digest of the ids of all chunks; does not depend on which of several copies the catalog names."""
        digest = hashlib.blake2b(digest_size=16)
        for (chunk_id,) in self._db.execute("SELECT id FROM chunks ORDER BY id"):
            digest.update(chunk_id)
        return digest.digest()

    def notes(self, prefix: str) -> dict[str, str]:
        """Remembered values whose keys begin with ``prefix``."""
        rows = self._db.execute(
            "SELECT key, value FROM meta WHERE substr(key, 1, ?) = ?", (len(prefix), prefix)
        )
        return {str(key): str(value) for key, value in rows}

    def in_pack(self, number: int) -> dict[int, bytes]:
        """Ids of the chunks in a pack, by offset."""
        return dict(self._db.execute("SELECT offset, id FROM chunks WHERE pack=?", (number,)))

    def chunks_in(self, number: int) -> list[tuple[bytes, int, int]]:
        """Id, offset and length of each chunk in a pack, by offset."""
        return self._db.execute(
            "SELECT id, offset, length FROM chunks WHERE pack=? ORDER BY offset", (number,)
        ).fetchall()

    def free(self, ids: Iterable[bytes]) -> int:
        """Move chunks to ``freed``: nothing refers to them any more. Returns how many were there."""
        rows = [(chunk_id,) for chunk_id in ids]
        self._db.executemany(
            "INSERT INTO freed SELECT pack, offset, length FROM chunks WHERE id=?", rows
        )
        return self._db.executemany("DELETE FROM chunks WHERE id=?", rows).rowcount

    def packs_with_freed(self) -> list[int]:
        """Numbers of the packs in which chunks are freed."""
        return [row[0] for row in self._db.execute("SELECT DISTINCT pack FROM freed")]

    def freed_in(self, number: int) -> tuple[str, list[tuple[int, int]]]:
        """A pack's name, and offset and length of each freed chunk in it, by offset."""
        (name,) = self._db.execute("SELECT name FROM packs WHERE number=?", (number,)).fetchone()
        rows = self._db.execute(
            "SELECT offset, length FROM freed WHERE pack=? ORDER BY offset", (number,)
        ).fetchall()
        return name, rows

    def forget_freed(self, pack: int) -> None:
        """The freed space of a pack has been given back."""
        self._db.execute("DELETE FROM freed WHERE pack=?", (pack,))

    def holds_any(self, pack: int) -> bool:
        """Whether a pack holds a chunk that anything refers to."""
        return (
            self._db.execute("SELECT 1 FROM chunks WHERE pack=? LIMIT 1", (pack,)).fetchone()
            is not None
        )

    def drop_unreferenced(self, references: Iterable[Iterable[bytes]], free: bool) -> int:
        """Take every chunk that is not among the references out, to ``freed`` if so wanted; returns how many."""
        self._db.execute("CREATE TEMP TABLE referenced (id BLOB PRIMARY KEY) WITHOUT ROWID")
        self._db.execute("CREATE TEMP TABLE listed (id BLOB)")
        for ids in references:
            self._db.executemany("INSERT INTO listed VALUES (?)", ((chunk_id,) for chunk_id in ids))
        self._db.execute(
            "INSERT OR IGNORE INTO referenced SELECT id FROM listed ORDER BY id"
        )  # at random takes longer
        self._db.execute("DROP TABLE listed")
        dead = "FROM chunks WHERE id NOT IN (SELECT id FROM referenced)"
        if free:
            self._db.execute(f"INSERT INTO freed SELECT pack, offset, length {dead}")  # noqa: S608
        dropped = self._db.execute(f"DELETE {dead}").rowcount  # noqa: S608
        self._db.execute("DROP TABLE referenced")
        return dropped
