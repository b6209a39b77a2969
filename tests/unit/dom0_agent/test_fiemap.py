"""The comparison of two maps, against bytes laid out by the same maps."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dom0_agent.sources.fiemap import DOUBTFUL, ENCODED, UNWRITTEN, Extent, _differences

extent = st.tuples(
    st.integers(0, 3), st.integers(1, 5), st.integers(0, 12), st.sampled_from([0, 0, 0, UNWRITTEN, ENCODED, DOUBTFUL & 0x200])
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
                known = ("at", e.physical + i) if not e.flags else 0 if e.flags == UNWRITTEN else ("?", id(extents), number)
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
