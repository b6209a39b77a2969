# SPDX-License-Identifier: GPL-2.0-or-later
"""What two maps of where files are say about each other, in bounded memory, whatever told them.

A map comes in lists of rows, in order of the file; what reads as zeros (holes, preallocated space)
has no row. A row is (logical, length, place, shift, kind): ``length`` bytes of the file at
``logical`` come from ``place``, as far into it as ``logical + shift`` says. So a row that is cut in
two keeps its last three numbers, and two files that have the same three for a byte hold the same
byte there, unless ``kind`` says UNSURE.
"""

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, zip_longest

from dom0_agent.bitmap import GRAIN, Bitmap
from dom0_agent.sources import Range

Row = tuple[int, int, int, int, int]
# Plain tuples, and numbers for their fields: there may be millions, and a class would double what
# each costs.
LOGICAL, LENGTH, PLACE, SHIFT, KIND = range(5)
WHERE = slice(PLACE, KIND + 1)
"""Of a row: what two rows have in common that hold the same bytes at a place of their files."""
Rows = Iterator[list[Row]]
Reader = Callable[[int, int], Rows]
"""Reads the map of an open file up to so many bytes of it; raises OSError and TooManyPieces."""

UNSURE = 1 << 63
"""Bit of ``kind``: nothing can be concluded from where this row is."""
WORD = (1 << 64) - 1
CHUNK = 4096
"""Rows in one list, about."""
PIECES = 1 << 23
"""Rows of a map beyond which it is not read on: by then (half a minute) reading the contents is
about as quick.
"""


class TooManyPieces(Exception):
    """A file is torn into more than PIECES pieces."""


def joined(read: Iterable[Iterable[Row]]) -> Rows:
    """Rows with those made one that continue where the one before ends, in lists of about CHUNK.

    The kernel cuts a map where sharing begins and ends, too, which says nothing of the bytes.
    """
    held: Row | None = None
    out: list[Row] = []
    count = 0
    for rows in read:
        for row in rows:
            if held is None:
                held = row
            elif (
                held[LOGICAL] + held[LENGTH] == row[LOGICAL]
                and held[WHERE] == row[WHERE]
                and row[KIND] < UNSURE
            ):
                length = held[LENGTH] + row[LENGTH]
                held = (held[LOGICAL], length, held[PLACE], held[SHIFT], held[KIND])
            else:
                out.append(held)
                held = row
        if len(out) >= CHUNK:
            count += len(out)
            if count > PIECES:
                raise TooManyPieces
            yield out
            out = []
    if held is not None:
        yield [*out, held]


class Digest:
    """Digest of a map, taken while it is read. It does not depend on how the rows come in lists."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self._hash = rows, hashlib.blake2b(digest_size=16)

    def __iter__(self) -> Rows:
        for rows in self._rows:
            self._hash.update(array("Q", chain.from_iterable(rows)))
            yield rows

    def value(self) -> bytes:
        """The digest, once all was read; what is left is read now."""
        for _ in self:
            pass
        return self._hash.digest()


class _Side:
    """One file's rows, taken up to one place after another."""

    def __init__(self, chunks: Rows, size: int) -> None:
        self._chunks, self._size = chunks, size
        self._rows: list[Row] = []
        self.end = 0

    def fill(self, at: int) -> None:
        """Read on, if what is at ``at`` is not known yet; then the map is known up to ``end``."""
        while self.end <= at:
            rows = next(self._chunks, None)
            if rows is None:
                self.end = self._size
                return
            self._rows += rows
            self.end = min(_end(rows[-1]), self._size)

    def take(self, end: int) -> list[Row]:
        """The rows up to ``end``; one that extends beyond it is cut."""
        cut = bisect_left(self._rows, (end,))
        taken, self._rows = self._rows[:cut], self._rows[cut:]
        if taken and (beyond := _end(taken[-1]) - end) > 0:
            logical, length, *rest = taken[-1]
            taken[-1] = (logical, length - beyond, *rest)  # type: ignore[assignment]
            self._rows.insert(0, (end, beyond, *rest))  # type: ignore[arg-type]
        return taken


def compare(base: Rows, new: Rows, size: int) -> Iterator[Range]:
    """Ranges below ``size`` that the two maps do not prove equal, in order; one range may touch the
    next.
    """
    a, b, at = _Side(iter(base), size), _Side(iter(new), size), 0
    while at < size:
        b.fill(at)
        a.fill(at)
        end = min(a.end, b.end)
        yield from _unlike(a.take(end), b.take(end), at, end)
        at = end


def _unlike(a: list[Row], b: list[Row], start: int, end: int) -> Iterator[Range]:
    common = {row for row in set(a).intersection(b) if row[KIND] < UNSURE}
    if len(common) == len(a) == len(b):
        return
    # Without what they have in common: a gap in both is alike, so that is right for the common
    # ones, too.
    mine = iter([row for row in a if row not in common])
    others = iter([row for row in b if row not in common])
    x, y, at, begin = next(mine, None), next(others, None), start, -1
    while at < end:
        while x is not None and _end(x) <= at:
            x = next(mine, None)
        while y is not None and _end(y) <= at:
            y = next(others, None)
        here_x, end_x = _at(x, at, end)
        here_y, end_y = _at(y, at, end)
        same = _alike(here_x, here_y)
        if not same and begin < 0:
            begin = at
        elif same and begin >= 0:
            yield begin, at
            begin = -1
        at = min(end_x, end_y)
    if begin >= 0:
        yield begin, end


def _alike(x: Row | None, y: Row | None) -> bool:
    if x is None or y is None:
        return x is y
    return x[WHERE] == y[WHERE] and x[KIND] < UNSURE


def _end(row: Row) -> int:
    """Where in the file a row ends."""
    return row[LOGICAL] + row[LENGTH]


def _at(row: Row | None, at: int, end: int) -> tuple[Row | None, int]:
    """The row if it covers ``at`` (else None), and where that ends."""
    if row is None:
        return None, end
    if row[LOGICAL] > at:
        return None, min(row[LOGICAL], end)
    return row, min(_end(row), end)


def changed_ranges(
    read: Reader, base: int, new: int, size: int, remembered: bytes | None, attempts: int
) -> tuple[Bitmap | None, bytes]:
    """What of the first ``size`` bytes of the file ``new`` may differ from ``base``, and the digest
    of new's map.

    ``remembered``: the digest of the base's map as it was read some time ago. The two maps are
    compared, then the base's is read again. If it is as it was before, the base held its blocks all
    the while, so that equal places mean equal bytes. If not, the base moved (balance,
    defragmentation, deduplication): all is read again. None when it keeps moving.
    """
    before = Digest(read(base, size)).value() if remembered is None else remembered
    for _ in range(attempts):
        changed, fresh = Bitmap(), Digest(read(new, size))
        for start, end in compare(read(base, size), iter(fresh), size):
            changed.mark(start, end)
        after = Digest(read(base, size)).value()
        if after == before:
            return changed, fresh.value()
        before = after
    return None, b""


def still_there(read: Reader, live: int, base: int, size: int, remembered: bytes | None) -> bool:
    """Whether the file ``live``, of which ``base`` is a clone of the same size, certainly holds
    what the clone does.

    Every place that the clone refers to is written elsewhere when the file is written (copy on
    write), so that a row of the file that is where the clone's is was not written since the
    clone was made. What is written while the maps are read comes after the moment at which reading
    them began, and for that moment the answer is given. (Only somebody who within these
    milliseconds cloned the clone's own blocks back over what was just written could deceive it.)
    ``remembered``: the digest of the clone's map when it was new, which it must have still, as for
    ``changed_ranges``.
    """
    if remembered is None:
        return False
    held = Digest(read(base, size))
    for now, then in zip_longest(read(live, size), held):
        if now != then or any(row[KIND] >= UNSURE for row in then):
            return False
    return held.value() == remembered


def ranges(changed: Bitmap, size: int) -> Iterator[Range]:
    """The bytes below ``size`` that a map has marked, in order and apart."""
    for first, end in changed.runs(1, -(-size // GRAIN)):
        yield first * GRAIN, min(end * GRAIN, size)
