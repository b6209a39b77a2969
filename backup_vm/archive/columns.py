# SPDX-License-Identifier: GPL-2.0-or-later
"""The two columns of a session file, chunk numbers and chunk ids, read a part at a time.

They are read, not mapped: in mapped memory a sector that cannot be read kills the process, and some
network and FUSE file systems map nothing. No file stays open between two parts, for a volume may
have thousands of sessions.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from backup_vm.archive.damage import opened
from backup_vm.archive.format import SESSION_HEAD_SIZE
from backup_vm.archive.storage import Storage
from backup_vm.errors import DamagedError
from wire.chunks import ID_SIZE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from backup_vm.archive.sessions import Session

    Numbers = NDArray[np.int64]
    Ids = NDArray[np.uint8]

SLICE = 1 << 16
"""Rows read together, at most: 2.5 MiB."""
_TOGETHER = 1 << 19
"""Rows kept at hand for all columns of one image: 20 MiB."""
_LEAST = 64
_NONE = 1 << 64


class _Rows(NamedTuple):
    """Rows of both columns, from ``at`` up to ``end``."""

    at: int
    end: int
    numbers: "Numbers"
    ids: "Ids"


class Columns:
    """The entries of one session file. Not to be shared between threads.

    ``rows``: so many are read at a time, and kept.
    """

    def __init__(self, storage: Storage, session: "Session", rows: int = SLICE) -> None:
        self._storage, self._session = storage, session
        self.count, self._rows = session.count, rows
        self._kept: _Rows | None = None
        self._asked, self._next = 1, 0
        """``_next`` is the first chunk number from ``_asked`` on that has an entry; unknown at
        first.
        """

    def slices(self, rows: int = SLICE) -> "Iterator[tuple[Numbers, Ids]]":
        """Both columns from first row to last, in parts of so many rows. Raises DamagedError."""
        last = -1
        for at in range(0, self.count, rows):
            part = self._read(at, min(at + rows, self.count))
            if part.numbers[0] <= last:
                raise self._damaged()
            last = int(part.numbers[-1])
            yield part.numbers, part.ids

    def check(self) -> None:
        """Look at all chunk numbers; raise DamagedError where they do not rise within the
        volume.
        """
        last = -1
        for at in range(0, self.count, SLICE):
            with self._opened() as fd:
                numbers = self._numbers(fd, at, min(at + SLICE, self.count))
            if numbers[0] <= last:
                raise self._damaged()
            last = int(numbers[-1])

    def between(self, first: int, end: int) -> "Iterator[tuple[Numbers, Ids]]":
        """The entries of the chunks from ``first`` up to ``end``, in parts. Raises DamagedError.

        Quickest when asked in rising order.
        """
        if not self.count or (self._asked <= first and end <= self._next):
            return
        kept = self._find(first)
        while True:
            low, high = kept.numbers.searchsorted((first, end)).tolist()
            if low < high:
                yield kept.numbers[low:high], kept.ids[low:high]
            if high < len(kept.numbers) or kept.end == self.count:
                break
            kept = self._load(kept.end)
        self._asked = end
        self._next = int(kept.numbers[high]) if high < len(kept.numbers) else _NONE

    def next(self, first: int) -> int | None:
        """The smallest chunk number from ``first`` on that has an entry, None if none has.

        Raises DamagedError.
        """
        if not self.count:
            return None
        if not self._asked <= first <= self._next:
            kept = self._find(first)
            at = int(kept.numbers.searchsorted(first))
            self._asked = first
            self._next = int(kept.numbers[at]) if at < len(kept.numbers) else _NONE
        return self._next if self._next < _NONE else None

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """A descriptor of the file, if it is the one that the session was read from: a merge stores
        another one under its name.
        """
        with opened(self._storage, self._session.file) as fd:
            if os.fstat(fd).st_size != self._session.file_size:
                raise DamagedError(f"{self._path()} is another file than when it was opened")
            yield fd

    def _find(self, first: int) -> _Rows:
        """Have the rows at hand in which the first number of ``first`` or more is, or the last."""
        kept, low, high = self._kept, 0, self.count
        if kept is not None and first > kept.numbers[-1]:
            if kept.end == self.count:
                return kept
            low = kept.end
        elif kept is not None:
            if kept.at == 0 or kept.numbers[0] <= first:
                return kept
            high = kept.at
        with self._opened() as fd:
            while high - low >= self._rows:  # it may also be the row ``high``
                middle = (low + high) // 2
                raw = self._bytes(fd, SESSION_HEAD_SIZE + 8 * middle, 8)
                if int.from_bytes(raw, "little") < first:
                    low = middle + 1
                else:
                    high = middle
        return self._load(min(low, self.count - 1))

    def _load(self, at: int) -> _Rows:
        """Read the rows from ``at`` on; their numbers must be above those of the rows before."""
        before, rows = self._kept, self._read(at, min(at + self._rows, self.count))
        if before is not None and at == before.end and rows.numbers[0] <= before.numbers[-1]:
            raise self._damaged()
        self._kept = rows
        return rows

    def _read(self, at: int, end: int) -> _Rows:
        """Some rows; DamagedError also where numbers do not rise, or are beyond the volume."""
        import numpy as np

        with self._opened() as fd:
            numbers = self._numbers(fd, at, end)
            start = SESSION_HEAD_SIZE + 8 * self.count
            ids = self._bytes(fd, start + ID_SIZE * at, ID_SIZE * (end - at))
        return _Rows(at, end, numbers, np.frombuffer(ids, np.uint8).reshape(-1, ID_SIZE))

    def _numbers(self, fd: int, at: int, end: int) -> "Numbers":
        import numpy as np

        raw = self._bytes(fd, SESSION_HEAD_SIZE + 8 * at, 8 * (end - at))
        numbers = np.frombuffer(raw, "<i8")
        rising = bool((numbers[1:] > numbers[:-1]).all())
        if not rising or numbers[0] < 0 or numbers[-1] >= self._session.chunks:
            raise self._damaged()
        return numbers

    def _bytes(self, fd: int, offset: int, length: int) -> bytes:
        found = os.pread(fd, length, offset)
        while len(found) < length:
            more = os.pread(fd, length - len(found), offset + len(found))
            if not more:
                raise DamagedError(f"{self._path()} is damaged: it is cut short")
            found += more
        return found

    def _damaged(self) -> DamagedError:
        return DamagedError(f"{self._path()} is damaged: its chunk numbers are impossible")

    def _path(self) -> str:
        return self._storage.describe(self._session.file)


def columns_of(storage: Storage, series: "Sequence[Session]") -> list[Columns]:
    """The columns of several sessions, to be looked at together.

    Memory does not grow with how many there are: what small ones do not need is for large ones.
    """
    rows = _LEAST
    for _ in range(4):
        left = _TOGETHER - sum(min(session.count, rows) for session in series)
        larger = sum(session.count > rows for session in series)
        rows += max(left, 0) // max(larger, 1)
    return [Columns(storage, session, min(rows, SLICE)) for session in series]
