"""The comparison of two maps, against bytes laid out by the same maps."""

from array import array
from collections import Counter
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from dom0_agent.sources import fiemap
from dom0_agent.sources.fiemap import DOUBTFUL, ENCODED, UNWRITTEN, Extent, Map, _differences

extent = st.tuples(
    st.integers(0, 3),
    st.integers(1, 5),
    st.integers(0, 12),
    st.sampled_from([0, 0, 0, UNWRITTEN, ENCODED, DOUBTFUL & 0x200]),
)


def laid_out(parts: list[tuple[int, int, int, int]]) -> list[Extent]:
    found, at = [], 0
    for gap, length, physical, flags in parts:
        at += gap
        found.append(Extent(at, physical, length, flags))
        at += length
    return found


def contents(extents: list[Extent], size: int) -> list[object]:
    """What each unit holds: zeros, or the unit of the disk it lies at; unknown where the map vouches for nothing."""
    held: list[object] = [0] * size
    for number, e in enumerate(extents):
        for i in range(e.length):
            if e.logical + i < size:
                known = (
                    ("at", e.physical + i)
                    if not e.flags
                    else 0
                    if e.flags == UNWRITTEN
                    else ("?", id(extents), number)
                )
                held[e.logical + i] = known
    return held


@given(st.lists(extent, max_size=6), st.lists(extent, max_size=6), st.integers(0, 40))
def test_what_differs_is_never_called_the_same(a: list, b: list, size: int) -> None:  # type: ignore[type-arg]
    old, new = laid_out(a), laid_out(b)
    changed = list(_differences(iter(old), iter(new), size, Counter()))
    assert all(start < end for start, end in changed)
    assert all(x[1] < y[0] for x, y in zip(changed, changed[1:], strict=False))
    named = {at for start, end in changed for at in range(start, end)}
    before, after = contents(old, size), contents(new, size)
    assert named == {at for at in range(size) if before[at] != after[at]}


def test_a_compressed_part_counts_as_the_same_only_if_it_is_the_only_one() -> None:
    part = [Extent(0, 100, 10, ENCODED)]
    assert list(_differences(iter(part), iter(part), 10, Counter({100: 1}))) == []
    assert list(_differences(iter(part), iter(part), 10, Counter({100: 2}))) == [(0, 10)]
    moved = [Extent(0, 100, 9, ENCODED)]
    assert list(_differences(iter(part), iter(moved), 10, Counter({100: 1}))) == [(0, 10)]


def map_of(extents: list[Extent], batch: int = 3) -> Map:
    """As the kernel would tell of them, a few at a time; the flags that say nothing of the data are set here and there."""
    words = [
        [e.logical, e.physical, e.length, 7, 7, e.flags | e.physical % 2 * 0x2000 | 9 << 32, 7]
        for e in extents
    ]
    return Map(array("Q", sum(words[at : at + batch], [])) for at in range(0, len(words), batch))


def read_back(one: Map) -> list[Extent]:
    return list(one.extents(range(len(one.flags))))


@given(st.lists(extent, max_size=12), st.integers(1, 4))
def test_a_map_joins_what_adjoins_and_nothing_else(parts: list, batch: int) -> None:  # type: ignore[type-arg]
    joined: list[Extent] = []
    for e in laid_out(parts):
        if joined and not e.flags & (ENCODED | DOUBTFUL) and joined[-1].flags == e.flags:
            last = joined[-1]
            if (last.logical + last.length, last.physical + last.length) == (e.logical, e.physical):
                joined[-1] = last._replace(length=last.length + e.length)
                continue
        joined.append(e)
    assert read_back(map_of(laid_out(parts), batch)) == joined
    assert map_of(laid_out(parts), batch).digest == map_of(joined).digest


@given(
    st.lists(extent, max_size=12),
    st.lists(extent, max_size=12),
    st.integers(0, 60),
    st.integers(1, 4),
    st.booleans(),
)
def test_leaving_out_what_two_maps_have_in_common_changes_nothing(
    a: list,  # type: ignore[type-arg]
    b: list,  # type: ignore[type-arg]
    size: int,
    window: int,
    shared: bool,
) -> None:
    old, new = map_of(laid_out(a)), map_of(laid_out(a[:4] + b if shared else b))
    with patch.object(fiemap, "_WINDOW", window):
        mine, others = old.differing(new)
    less = list(_differences(old.extents(mine), new.extents(others), size, old.encoded))
    assert less == list(_differences(iter(read_back(old)), iter(read_back(new)), size, old.encoded))
