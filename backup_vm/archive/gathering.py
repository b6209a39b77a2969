# SPDX-License-Identifier: GPL-2.0-or-later
"""What packs hold and what sessions list, brought into the order of chunk ids a part at a time.

A catalog is made in this order, for a tree that is filled at random places is slow. Ids are keyed
hashes, so that parts by their first bits are about equally large, whatever is in the archive; parts
by volume or by deduplication domain would not be. Each part is sorted, and compared with what
sessions list of it, in memory.

What is too much for memory waits in a database beside the catalog. With each of its transactions it
has some packs more, whole: a rebuild that is cut off is resumed after these. Like the catalog it is
believed for packs by name and size, and no more than a catalog is: every row is checked where it is
used. Packs whose index is damaged are read again, for they may be put back meanwhile.

That a chunk is in no pack is not believed of what was found here, but of a second reading that was
begun because of that (``again``), in however many runs: else a rebuild that never ends in one run
would never end where chunks are missing.
"""

import sqlite3
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Self

from backup_vm.archive.catalog_base import VERSION, contents, contents_of
from backup_vm.archive.joining import Part, column, joined
from backup_vm.archive.packs import checksum
from common.existing import exists
from wire.chunks import ID_SIZE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from backup_vm.archive.packs import Packed

    Bytes = NDArray[np.uint8]
    Numbers = NDArray[np.int64]

AT_ONCE = 1 << 17
"""Rows that are held in memory: about 40 MiB with all that is done with them."""
_LONGEST = 32 << 20
"""Bytes of a row of the database: all that is held in memory may be of one part, and be a pack of
the largest index more than AT_ONCE.
"""
_BITS = 10
"""First bits of an id that number its part: of ten million chunks 10,000 in each, of a billion
chunks a million.
"""
PUT_AWAY_SECONDS = 30.0
"""Seconds of reading packs after which what was gathered is put away, however little it is."""
_PACKED, _LISTED = 0, 1
_WIDTHS = (ID_SIZE + 16, ID_SIZE + 4)
"""Bytes of a row: an id, then pack number (4), length (4) and offset (8); or file number (4)."""
_AGAIN = "again"
_PLACE = struct.Struct("<IIQ")
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE packs (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, size INTEGER NOT NULL);
CREATE TABLE gathered (
    kind INTEGER NOT NULL, part INTEGER NOT NULL, rows BLOB NOT NULL, checksum BLOB NOT NULL
);
CREATE INDEX gathered_by_part ON gathered (kind, part);
"""

_ODD = (
    "SELECT count(*) FROM packs WHERE typeof(name) != 'text' OR typeof(size) != 'integer'"
    " OR number NOT BETWEEN 1 AND 4000000000",
    "SELECT count(*) FROM gathered WHERE typeof(kind) != 'integer' OR typeof(part) != 'integer'"
    " OR typeof(rows) != 'blob' OR part NOT BETWEEN 0 AND 1023",
)
"""How many rows are not as they are written here, which SQLite leaves to whoever writes."""


class Gathering:
    """See the module. ``path``: where its database is, if it needs one. sqlite3.DatabaseError from
    any method when ``resumed`` means that it must be made again.
    """

    def __init__(self, path: Path, archive: bytes, again: bool = False) -> None:
        import numpy as np

        self._path, self._archive = path, archive
        self.again = again
        """Whether this is a second reading, of which also is believed what it lacks."""
        self._db: sqlite3.Connection | None = None
        self._rows: tuple[list[Bytes], list[Bytes]] = ([], [])
        self._held = [0, 0]
        self._counts = np.zeros((2, 1 << _BITS), np.int64)
        self.packs: dict[str, tuple[int, int]] = {}
        """Number and size of each pack that was gathered, by name."""
        self._new: list[tuple[str, int, int]] = []
        self._last, self._put = 0, time.monotonic()
        self.resumed = False

    @classmethod
    @contextmanager
    def at(
        cls, path: Path, archive: bytes, sizes: Mapping[str, int], again: bool = False
    ) -> Iterator[Self]:
        """One that takes up what is there, and leaves it. ``sizes``: of the packs there are."""
        made = cls(path, archive, again)
        try:
            made.resume(sizes)
            if again and not made.resumed:
                made._create()  # at once: it must be known that this is the second reading
            yield made
        finally:
            made.close()

    @classmethod
    def fits(cls, path: Path, archive: bytes, sizes: Mapping[str, int]) -> bool:
        """Whether what is there can be taken up."""
        made = cls(path, archive)
        try:
            return made.resume(sizes)
        finally:
            made.close()

    def resume(self, sizes: Mapping[str, int]) -> bool:
        """Take up what a run that was cut off has left; False where that fits no more.
        ``sizes``: of the packs there are.
        """
        if not exists(self._path):
            return False
        with suppress(sqlite3.DatabaseError):
            db = self._open()
            if (
                contents(db) == contents_of(_SCHEMA)
                and (meta := dict(db.execute("SELECT key, value FROM meta"))) in self._metas()
                and not any(db.execute(query).fetchone()[0] for query in _ODD)
            ):
                found = db.execute("SELECT name, number, size FROM packs").fetchall()
                # A pack of another size is another pack; this one's rows cannot be told from its.
                if all(sizes.get(name, size) == size for name, _, size in found):
                    self._take_up(db, found)
                    self.resumed, self.again = True, _AGAIN in meta
                    return True
        self.close()
        return False

    def _take_up(self, db: sqlite3.Connection, found: list[tuple[str, int, int]]) -> None:
        self.packs = {name: (number, size) for name, number, size in found}
        self._last = max((number for _, number, _ in found), default=0)
        db.execute("DELETE FROM gathered WHERE kind=?", (_LISTED,))
        query = "SELECT part, sum(length(rows)) FROM gathered GROUP BY part"
        for part, size in db.execute(query):
            self._counts[_PACKED, part] = size // _WIDTHS[_PACKED]

    def _metas(self) -> tuple[dict[str, str], dict[str, str]]:
        """What it says of itself: of a first reading, and of a second one."""
        first = {"version": str(VERSION), "archive": self._archive.hex()}
        return first, {**first, _AGAIN: "1"}

    def _open(self) -> sqlite3.Connection:
        db = self._db = sqlite3.connect(self._path, isolation_level=None)
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
        for setting in ("trusted_schema=OFF", "journal_mode=DELETE", "locking_mode=EXCLUSIVE"):
            db.execute(f"PRAGMA {setting}")
        return db

    def _create(self) -> sqlite3.Connection:
        db = self._open()
        db.executescript(_SCHEMA)
        db.executemany("INSERT INTO meta VALUES (?, ?)", self._metas()[self.again].items())
        return db

    def add_pack(
        self, name: str, size: int, entries: "Iterable[Packed]", indexed: bool = True
    ) -> None:
        """A pack with all that is in it. ``indexed``: whether its own index said so; else another
        run reads it again.
        """
        self._last += 1
        number = self._last
        self.packs[name] = number, size
        # The number is taken either way; no pack has the other name, so that its rows count for
        # nothing in another run.
        self._new.append((name if indexed else f"?{number}", number, size))
        self._add(
            _PACKED,
            b"".join(e.id + _PLACE.pack(number, e.length, e.offset) for e in entries),
        )
        if self._rows[_PACKED] and time.monotonic() - self._put >= PUT_AWAY_SECONDS:
            self._put_away(_PACKED)

    def add_listed(self, number: int, ids: "Bytes") -> None:
        """Ids that a file lists: uint8[n, 32], without zeros."""
        import numpy as np

        rows = np.empty((len(ids), _WIDTHS[_LISTED]), np.uint8)
        rows[:, :ID_SIZE] = ids
        rows[:, ID_SIZE:] = np.frombuffer(number.to_bytes(4, "little"), np.uint8)
        self._add(_LISTED, rows.tobytes())

    def _add(self, kind: int, raw: bytes) -> None:
        import numpy as np

        rows = np.frombuffer(raw, np.uint8).reshape(-1, _WIDTHS[kind])
        self._rows[kind].append(rows)
        self._held[kind] += len(rows)
        self._counts[kind] += np.bincount(_parts(rows), minlength=1 << _BITS)
        if self._held[kind] >= AT_ONCE:
            self._put_away(kind)

    def _put_away(self, kind: int) -> None:
        """Bring what is in memory to the database, and the packs that it is of."""
        import numpy as np

        rows = np.concatenate(self._rows[kind])
        self._rows[kind].clear()
        self._held[kind] = 0
        db = self._db or self._create()
        parts = _parts(rows)
        order = np.argsort(parts, kind="stable")
        rows, parts = rows[order], parts[order]
        starts = np.flatnonzero(np.diff(parts, prepend=-1)).tolist()
        if not db.in_transaction:
            db.execute("BEGIN")
        db.executemany(
            "INSERT INTO gathered VALUES (?, ?, ?, ?)",
            (
                (kind, int(parts[start]), raw := rows[start:end].tobytes(), checksum(raw))
                for start, end in pairwise([*starts, len(rows)])
            ),
        )
        if kind == _PACKED:
            db.executemany("INSERT INTO packs (name, number, size) VALUES (?, ?, ?)", self._new)
            self._new.clear()
            db.execute("COMMIT")
            self._put = time.monotonic()
        # What sessions list is not kept for another run: it is read in minutes, and sessions may
        # be others by then.

    def keep(self) -> None:
        """All packs are gathered: let a run that resumes find the last ones, too."""
        if self._db is not None and self._rows[_PACKED]:
            self._put_away(_PACKED)

    def parts(self, numbers: Iterable[int]) -> Iterator[Part]:
        """All that was gathered, of the packs of these numbers."""
        import numpy as np

        wanted = np.array(sorted(numbers), np.int64)
        counts, first = self._counts.sum(axis=0), 0
        for end in range(1, len(counts) + 1):
            if end < len(counts) and counts[first : end + 1].sum() <= AT_ONCE:
                continue
            packed = self._read(_PACKED, first, end)
            packed = packed[np.isin(column(packed, ID_SIZE, "<u4"), wanted)]
            if len(packed) or counts[first:end].any():
                yield joined(packed, self._read(_LISTED, first, end))
            first = end

    def _read(self, kind: int, first: int, end: int) -> "Bytes":
        """Rows of some parts, in the order in which they were added: uint8[n, width]."""
        import numpy as np

        width = _WIDTHS[kind]
        found = [np.empty((0, width), np.uint8)]
        if self._db is not None:
            query = (
                "SELECT rows, checksum FROM gathered WHERE kind=? AND part>=? AND part<?"
                " ORDER BY rowid"
            )
            for raw, check in self._db.execute(query, (kind, first, end)):
                if not isinstance(raw, bytes) or len(raw) % width:
                    raise sqlite3.DatabaseError("rows are of another length than rows have")
                if checksum(raw) != check:
                    raise sqlite3.DatabaseError("rows are not what they were")
                rows = np.frombuffer(raw, np.uint8).reshape(-1, width)
                parts = _parts(rows)
                if ((parts < first) | (parts >= end)).any():
                    raise sqlite3.DatabaseError("rows are in another part than their ids say")
                found.append(rows)
        for rows in self._rows[kind]:
            parts = _parts(rows)
            found.append(rows[(parts >= first) & (parts < end)])
        return np.concatenate(found)

    def close(self) -> None:
        """End; what is in the database can be resumed."""
        if self._db is not None:
            self._db.close()
            self._db = None


def _parts(rows: "Bytes") -> "Numbers":
    import numpy as np

    return (rows[:, 0].astype(np.int64) << 8 | rows[:, 1]) >> (16 - _BITS)
