# SPDX-License-Identifier: GPL-2.0-or-later
"""The catalog as a database: its schema, transactions, and what it remembers beside where chunks
are.
"""

import functools
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote_from_bytes

from backup_vm.archive.marks import Marks

VERSION = 2
LASTING = ("retention", "waiting", "noted")
"""Keys of what nothing in the store tells again: a catalog that is made in the place of another one
takes these values over. See holding.py and marks.py.
"""
LOST = "lost:"
"""Begins the keys of what ``losses`` remembers by volume, which is taken over, too."""
_SEEN = "seen:"
UNREADABLE = -2
"""In place of its size: a session or a pack that could not be read is looked at again whenever the
archive is opened, for no file has this size.
"""
_LONGEST = 1 << 20
"""Bytes of a row, of which those that are written here have some hundred."""
BY_PACK = "CREATE INDEX chunks_by_pack ON chunks (pack)"
RANGES = "(pack INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL)"
_SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE packs (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, size INTEGER NOT NULL);
CREATE TABLE files (name TEXT PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE spoilt (file TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE chunks (
    id BLOB PRIMARY KEY, pack INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL
) WITHOUT ROWID;
{BY_PACK};
CREATE TABLE rotten (
    pack TEXT NOT NULL, offset INTEGER NOT NULL, PRIMARY KEY (pack, offset)
) WITHOUT ROWID;
CREATE TABLE freed {RANGES};
CREATE INDEX freed_by_pack ON freed (pack);
"""


TABLES = ("meta", "packs", "files", "spoilt", "chunks", "rotten", "freed")
_TEXT, _NUMBER = "typeof({}) != 'text'", "typeof({}) != 'integer'"
_ODD = tuple(
    f"SELECT count(*) FROM {table} WHERE "  # noqa: S608 (names from the lines below)
    + " OR ".join(kind.format(column) for column, kind in columns.items())
    for table, columns in {
        "meta": {"key": _TEXT, "value": _TEXT},
        "packs": {"number": _NUMBER, "name": _TEXT, "size": _NUMBER},
        "files": {"name": _TEXT, "size": _NUMBER},
        "spoilt": {"file": _TEXT},
        "rotten": {"pack": _TEXT, "offset": _NUMBER},
    }.items()
)
"""How many values are of other types than the schema says, which SQLite leaves to whoever writes.
Of the large tables' rows it is looked at when they are read: see catalog.py."""


@functools.cache
def _expected() -> list[tuple[str, str, str, str]]:
    """What a catalog's own table of contents must say, to the letter."""
    return contents_of(_SCHEMA)


def contents_of(schema: str) -> list[tuple[str, str, str, str]]:
    """The table of contents of a database of this schema."""
    database = sqlite3.connect(":memory:")
    try:
        database.executescript(schema)
        return contents(database)
    finally:
        database.close()


def contents(database: sqlite3.Connection) -> list[tuple[str, str, str, str]]:
    """A database's table of contents."""
    rows = database.execute("SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_master")
    return sorted(rows.fetchall())


class CatalogBase:
    """See catalog.py. sqlite3.DatabaseError from any method: see catalog_file.is_damage."""

    def __init__(self, path: Path, read_only: bool = False, alone: bool = False) -> None:
        self.path = path
        self._lock = threading.Lock()
        self.marks = Marks(self)
        if read_only:
            # Where nothing at all can be written SQLite cannot lock either, and need not.
            rest = "mode=ro" if os.access(path, os.W_OK) else "mode=ro&immutable=1"
            # Path.as_uri, from Python 3.14 on, imports all that asks the web
            place = quote_from_bytes(os.fsencode(path.absolute()))
            self._db = sqlite3.connect(
                f"file://{place}?{rest}",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
            )
            self._db.execute("PRAGMA trusted_schema=OFF")
        else:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA trusted_schema=OFF")
            # Not WAL: it would save 3 ms a transaction, and leave two more files beside an archive
            # on a disk that is pulled out, without which a reader who may not write sees an old
            # state. There are few transactions instead: see RECORD_SECONDS of pack_writer.
            self._db.execute("PRAGMA journal_mode=TRUNCATE")
            # The order of durability is all that keeps a session from being stored before its
            # chunks are listed.
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA temp_store=FILE")
        # Whoever writes the store must not have this machine's memory filled by a name or a value.
        self._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
        # The archive's own lock keeps others away, so that SQLite need not look for them at every
        # statement: two system calls for each chunk of a full backup.
        if alone:
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        # 16 MiB; a look-up of a chunk takes 9 us with 2 MiB as with 64.
        self._db.execute("PRAGMA cache_size=-16384")

    @classmethod
    def create(cls, path: Path, archive: bytes) -> Self:
        """Make an empty one, where there is nothing; its transaction is open. What is left of it
        when that is never committed is no catalog of this archive.
        """
        catalog = cls(path)
        # A file that is half made is thrown away, so that its journal need not be kept.
        catalog._db.execute("PRAGMA journal_mode=DELETE")
        catalog._db.executescript(_SCHEMA)
        catalog.begin()
        catalog.set_meta("version", str(VERSION))
        catalog.set_meta("archive", archive.hex())
        return catalog

    def ours(self) -> bool:
        """Whether its schema is a catalog's, to the letter: of no other is anything run."""
        return contents(self._db) == _expected()

    def rows(self, table: str, every: bool) -> Iterator[tuple[Any, ...]]:
        """Rows of a table of ours: all, or the first and the last."""
        text = f"SELECT * FROM {table} ORDER BY 1"  # noqa: S608 (a name from TABLES)
        if every:
            yield from self._db.execute(text)
            return
        yield from self._db.execute(f"{text} LIMIT 1")
        yield from self._db.execute(f"{text} DESC LIMIT 1")

    def row_count(self, table: str) -> int:
        """How many rows a table of ours has."""
        return int(self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608

    def columns(self, table: str) -> list[str]:
        """Names of the columns of a table of ours."""
        found = self._db.execute("SELECT name FROM pragma_table_info(?)", (table,))
        return [name for (name,) in found]

    def sound_for(self, archive: bytes) -> bool:
        """Whether this is a catalog of that archive and of this version, to the letter of its
        schema: nothing else is run.
        """
        return (
            self.ours()
            and not any(self._db.execute(query).fetchone()[0] for query in _ODD)
            and self.meta("version") == str(VERSION)
            and self.meta("archive") == archive.hex()
        )

    @property
    def written(self) -> bool:
        """Whether anything in it was changed since it was opened."""
        return self._db.total_changes > 0

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

    def savepoint(self) -> None:
        """Remember, within a transaction, how it is now."""
        self._db.execute("SAVEPOINT here")

    def undo(self) -> None:
        """Go back to how it was at the savepoint."""
        self._db.execute("ROLLBACK TO here")

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

    def lasting(self) -> tuple[tuple[str, str], ...]:
        """Keys and values of LASTING, and of those that begin with LOST."""
        found = ((key, self.meta(key)) for key in LASTING)
        lost = tuple(self.meta_with(LOST).items())
        return lost + tuple((key, value) for key, value in found if value is not None)

    def meta_with(self, prefix: str) -> dict[str, str]:
        """Remembered values whose keys begin with ``prefix``."""
        rows = self._db.execute(
            "SELECT key, value FROM meta WHERE substr(key, 1, ?) = ?", (len(prefix), prefix)
        )
        return {str(key): str(value) for key, value in rows}

    def pack_sizes(self) -> dict[str, int]:
        """For which packs it was made: sizes by name."""
        return dict(self._db.execute("SELECT name, size FROM packs"))

    def doubt_packs(self, names: Iterable[str]) -> None:
        """It is not made for these packs, which could not be read: whoever opens it looks at them
        again.
        """
        self.set_sizes(dict.fromkeys(names, UNREADABLE))

    def set_sizes(self, sizes: Mapping[str, int]) -> None:
        """It is made for these packs as they are: sizes by name."""
        rows = ((size, name) for name, size in sizes.items())
        self._db.executemany("UPDATE packs SET size=? WHERE name=?", rows)

    def doubted_packs(self) -> tuple[str, ...]:
        """Names of such packs."""
        found = self._db.execute("SELECT name FROM packs WHERE size=?", (UNREADABLE,))
        return tuple(name for (name,) in found)

    def pack_bytes(self) -> int:
        """Bytes of all packs, about: sizes that are no file's could not be added up as integers."""
        return int(self._db.execute("SELECT total(size) FROM packs WHERE size > 0").fetchone()[0])

    def files(self) -> dict[str, int]:
        """For which sessions and partial sessions it was made: sizes by name."""
        return dict(self._db.execute("SELECT name, size FROM files"))

    def seen(self) -> dict[str, str]:
        """Which versions of its sessions it was made for: a digest by volume; see listing.py."""
        found = self.meta_with(_SEEN)
        return {key.removeprefix(_SEEN): value for key, value in found.items()}

    def set_files(self, now: Mapping[str, int], seen: Mapping[str, str]) -> None:
        """Say for which files it is made now, and which versions of them were ``seen``."""
        then = self.files()
        gone, new = then.items() - now.items(), now.items() - then.items()
        self._db.executemany("DELETE FROM files WHERE name=?", ((name,) for name, _ in gone))
        self._db.executemany("INSERT INTO files VALUES (?, ?)", new)
        known = self.seen()
        for volume in known.keys() - seen.keys():
            self.set_meta(_SEEN + volume, None)
        for volume, digest in seen.items() - known.items():
            self.set_meta(_SEEN + volume, digest)

    def forget_files(self, names: Iterable[str]) -> None:
        """It is not made for these files any more, durably: they are about to be removed."""
        self.begin()
        self._db.executemany("DELETE FROM files WHERE name=?", ((name,) for name in names))
        self.commit()

    def spoilt(self) -> set[str]:
        """Session files that are known to be spoilt."""
        with self._lock:
            return {file for (file,) in self._db.execute("SELECT file FROM spoilt").fetchall()}

    def set_spoilt(self, files: Iterable[str]) -> None:
        """Say which session files are spoilt."""
        self._db.execute("DELETE FROM spoilt")
        self.add_spoilt(files)

    def add_spoilt(self, files: Iterable[str]) -> None:
        """Say of more session files that they are spoilt."""
        self._db.executemany("INSERT OR IGNORE INTO spoilt VALUES (?)", ((file,) for file in files))

    def rotten(self) -> list[tuple[str, int]]:
        """Packs' names and offsets of chunks that are not what the packs' indexes say."""
        return self._db.execute("SELECT pack, offset FROM rotten").fetchall()

    def add_rotten(self, places: Iterable[tuple[str, int]]) -> None:
        """Remember such places, and forget the chunks there."""
        for name, offset in places:
            self._db.execute("INSERT OR IGNORE INTO rotten VALUES (?, ?)", (name, offset))
            self._db.execute(
                "DELETE FROM chunks WHERE offset=? AND pack=(SELECT number FROM packs WHERE"
                " name=?)",
                (offset, name),
            )
