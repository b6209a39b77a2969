# SPDX-License-Identifier: GPL-2.0-or-later
"""The entries of one folder: in memory where they are few, else in a file without a name, so that
memory stays bounded however many a hostile folder has.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import chain, islice

from backup_vm.errors import SparsebakError
from backup_vm.files.answers import Entry, FileSystemError, Stat

FEW = 20_000
"""Entries kept in memory: about 20 MB."""
_TOGETHER = 1000
_CACHE_KIB = 16 << 10


class Listing:
    """Entries of a folder, no name twice. Raises FileSystemError where one is, and whatever drawing
    the entries raises; SparsebakError where there is no room for them. Safe to share between
    threads that take turns.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        drawn = iter(entries)
        few: dict[bytes, Entry] = {}
        for entry in islice(drawn, FEW):
            if entry.name in few:
                raise _twice()
            few[entry.name] = entry
        self._few = dict(sorted(few.items()))
        self._row = list(self._few.values())
        self._many: _Many | None = None
        if (next_one := next(drawn, None)) is not None:
            self._many = _Many(chain(self._row, [next_one], drawn))
            self._few, self._row = {}, []

    def __iter__(self) -> Iterator[Entry]:
        """All, by name."""
        return iter(self._row) if self._many is None else self._many.by_name()

    def after(self, position: int) -> Iterator[tuple[int, Entry]]:
        """Those behind a position, in an order that stays, each with its own; 0 is before all."""
        if self._many is None:
            return enumerate(self._row[position:], position + 1)
        return self._many.after(position)

    def get(self, name: bytes) -> Entry | None:
        """One of them."""
        return self._few.get(name) if self._many is None else self._many.get(name)

    @property
    def held(self) -> int:
        """About how many entries' memory it takes."""
        return len(self._row) + 1 if self._many is None else FEW

    def close(self) -> None:
        """Give back what it takes."""
        if self._many is not None:
            self._many.close()


class _Many:
    """In a database of SQLite's that has no name: in $TMPDIR, else in /var/tmp."""

    def __init__(self, entries: Iterator[Entry]) -> None:
        with _room():
            self._base = sqlite3.connect("", isolation_level=None, check_same_thread=False)
            run = self._base.execute
            run("PRAGMA journal_mode = OFF")
            run(f"PRAGMA cache_size = -{_CACHE_KIB}")
            run("CREATE TABLE entries (name BLOB, node BLOB, stat TEXT, trouble TEXT)")
            run("BEGIN")
        while together := list(islice(entries, _TOGETHER)):
            rows = [
                (one.name, one.node.to_bytes(16), one.stat and json.dumps(one.stat), one.trouble)
                for one in together
            ]
            with _room():
                self._base.executemany("INSERT INTO entries VALUES (?, ?, ?, ?)", rows)
        with _room():  # at the end: sorting once takes less than putting each in its place
            try:
                run("CREATE UNIQUE INDEX by_name ON entries (name)")
            except sqlite3.IntegrityError:
                raise _twice() from None
            run("COMMIT")

    def by_name(self) -> Iterator[Entry]:
        rows = self._rows("SELECT rowid, name, node, stat, trouble FROM entries ORDER BY name")
        return (entry for _, entry in rows)

    def after(self, position: int) -> Iterator[tuple[int, Entry]]:
        return self._rows(
            "SELECT rowid, name, node, stat, trouble FROM entries WHERE rowid > ? ORDER BY rowid",
            position,
        )

    def get(self, name: bytes) -> Entry | None:
        rows = self._rows(
            "SELECT rowid, name, node, stat, trouble FROM entries WHERE name = ?", name
        )
        return next((entry for _, entry in rows), None)

    def _rows(self, query: str, *values: object) -> Iterator[tuple[int, Entry]]:
        with _room(), closing(self._base.execute(query, values)) as cursor:
            for position, name, node, stat, trouble in cursor:
                about = None if stat is None else Stat(*json.loads(stat))
                yield position, Entry(name, int.from_bytes(node), about, trouble)

    def close(self) -> None:
        self._base.close()


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise SparsebakError(
            f"no room for the names of a large folder: {error}", "name a folder in TMPDIR"
        ) from None


def _twice() -> FileSystemError:
    return FileSystemError("a folder has a name twice")
