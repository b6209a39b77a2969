# SPDX-License-Identifier: GPL-2.0-or-later
"""The comparison of two maps, against bytes laid out by the same maps."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0_agent.bitmap import GRAIN
from dom0_agent.kernel import FiemapExtent
from dom0_agent.sources import extents, fiemap
from dom0_agent.sources.extents import (
    UNSURE,
    WORD,
    Digest,
    Row,
    TooManyPieces,
    changed_ranges,
    compare,
    joined,
    still_there,
)

part = st.tuples(
    st.integers(0, 3), st.integers(1, 5), st.integers(0, 2), st.integers(0, 12), st.integers(0, 4)
)


def laid_out(parts: list[tuple[int, int, int, int, int]]) -> list[Row]:
    """Rows with gaps between them: from which place, how far into it, and whether that is
    certain.
    """
    found, at = [], 0
    for gap, length, place, into, kind in parts:
        at += gap
        found.append((at, length, place, (into - at) & WORD, UNSURE if kind == 4 else kind // 3))
        at += length
    return found


def contents(rows: list[Row], size: int) -> list[object]:
    """What each unit holds: zeros, or a unit of some place; unknown where the map vouches for
    nothing.
    """
    held: list[object] = [0] * size
    for number, (logical, length, place, shift, kind) in enumerate(rows):
        for at in range(logical, min(logical + length, size)):
            sure = (place, (at + shift) & WORD, kind)
            held[at] = sure if kind < UNSURE else ("?", id(rows), number)
    return held


def lists(rows: list[Row], most: int) -> Iterator[list[Row]]:
    return (rows[at : at + most] for at in range(0, len(rows), most))


@given(
    st.lists(part, max_size=8),
    st.lists(part, max_size=8),
    st.integers(0, 50),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_what_differs_is_named_and_nothing_else(
    a: list[Any], b: list[Any], size: int, some: int, others: int
) -> None:
    old, new = laid_out(a), laid_out(b)
    changed = list(compare(lists(old, some), lists(new, others), size))
    assert all(start < end <= size for start, end in changed)
    assert all(x[1] <= y[0] for x, y in zip(changed, changed[1:], strict=False))
    named = {at for start, end in changed for at in range(start, end)}
    before, after = contents(old, size), contents(new, size)
    assert named == {at for at in range(size) if before[at] != after[at]}


@given(st.lists(part, max_size=12), st.integers(1, 4), st.integers(1, 4))
def test_joining_changes_nothing_but_the_number_of_rows(
    parts: list[Any], some: int, others: int
) -> None:
    rows = laid_out(parts)
    cut = [
        (logical + at, 1, place, shift, kind)
        for logical, length, place, shift, kind in rows
        for at in range(length)
        if kind < UNSURE or at == 0
    ]
    whole = [row for found in joined(lists(rows, some)) for row in found]
    size = 60
    assert [x for x in contents(whole, size) if x and x[0] != "?"] == [  # type: ignore[index]
        x
        for x in contents(rows, size)
        if x and x[0] != "?"  # type: ignore[index]
    ]
    if all(kind < UNSURE for *_, kind in rows):
        assert [row for found in joined(lists(cut, others)) for row in found] == whole
        assert Digest(joined(lists(cut, others))).value() == Digest(iter([whole])).value()


def test_rows_come_in_lists_of_bounded_length(monkeypatch: pytest.MonkeyPatch) -> None:
    apart: list[Row] = [(at * 2, 1, 0, at, 0) for at in range(3 * extents.CHUNK)]
    found = list(joined(lists(apart, 100)))
    assert max(map(len, found)) <= extents.CHUNK + 100 and sum(map(len, found)) == len(apart)
    monkeypatch.setattr(extents, "PIECES", 2 * extents.CHUNK)
    with pytest.raises(TooManyPieces):
        list(joined(lists(apart, 100)))


class Moving:
    """Reads maps of two files, 0 (the base) and 1, of which the base's blocks move until it was
    read so often.
    """

    def __init__(self, times: int) -> None:
        self.times, self.read = times, 0

    def __call__(self, fd: int, size: int) -> Iterator[list[Row]]:
        moved = 0
        if fd == 0:
            self.read += 1
            moved = min(self.read, self.times)
        yield [(0, size, 0, (self.times + moved * (1 - fd)) & WORD, 0)]


def test_a_base_that_moves_is_read_again_then_given_up() -> None:
    size = 4 * GRAIN
    still = Moving(0)
    changed, digest = changed_ranges(still, 0, 1, size, None, 10)
    assert changed is not None and changed.changed(size) == 0 and still.read == 3
    remembered, _ = changed_ranges(still, 0, 1, size, digest, 10)
    assert remembered is not None and still.read == 5, "one reading is spared"
    moving = Moving(5)
    changed, _ = changed_ranges(moving, 0, 1, size, None, 10)
    assert changed is not None and changed.changed(size) == size and moving.read == 7
    assert changed_ranges(Moving(1 << 40), 0, 1, size, None, 10) == (None, b"")


def test_a_file_is_as_its_clone_only_where_both_lie_for_certain() -> None:
    sure: list[Row] = [(0, 10, 0, 5, 0), (20, 10, 0, 7, 0)]
    unsure: list[Row] = [*sure, (40, 10, 0, 0, UNSURE)]
    files = {1: sure, 2: list(sure), 3: sure[:1], 4: unsure, 5: list(unsure), 6: []}

    def read(fd: int, size: int) -> Iterator[list[Row]]:
        return lists(files[fd], 1)

    def digest(fd: int) -> bytes:
        return Digest(read(fd, 50)).value()

    assert still_there(read, 1, 2, 50, digest(2))
    assert not still_there(read, 1, 2, 50, None) and not still_there(read, 1, 2, 50, digest(3))
    assert not still_there(read, 3, 1, 50, digest(1)) and not still_there(read, 1, 3, 50, digest(3))
    assert not still_there(read, 6, 1, 50, digest(1)) and not still_there(read, 1, 6, 50, digest(6))
    assert not still_there(read, 4, 5, 50, digest(5)), "nothing vouches for the last"
    assert still_there(read, 6, 6, 50, digest(6))


def test_what_fiemap_says_of_an_extent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros have no row; who else has an extent does not count; what is compressed or on its way is
    not certain.
    """
    flags = [0, 0x2000, fiemap.UNWRITTEN, fiemap.ENCODED, 0x4, 0x200, 0x1]
    row = FiemapExtent.row()
    told = b"".join(
        row.pack(at * 10, at * 10 + 100, 10, b"\7" * 16, flag, b"\x09" * 12)
        for at, flag in enumerate(flags)
    )
    monkeypatch.setattr(fiemap, "records", lambda fd, size: iter([list(row.iter_unpack(told))]))
    found = [row for rows in fiemap.rows(0, 70) for row in rows]
    assert found == [
        (0, 20, 0, 100, 0),
        *((at, 10, 0, 0, UNSURE) for at in (30, 40, 50)),
        (60, 10, 0, 100, 0),
    ]
