# SPDX-License-Identifier: GPL-2.0-or-later
"""Which chunks Extract looks at, against sets of their numbers."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from dom0_agent.rpc.batches import Batch, in_chunks, joined, spans
from dom0_agent.sources import Range
from wire.chunks import ID_SIZE


def runs_of(numbers: Iterable[int]) -> list[Range]:
    """Runs in order and apart, as a bitmap gives them."""
    runs: list[Range] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs


sets = st.sets(st.integers(0, 40))


@given(sets, sets)
def test_every_changed_chunk_comes_once_and_in_order(changed: set[int], data: set[int]) -> None:
    def data_in(first: int, end: int) -> Iterable[Range]:
        return runs_of(data & set(range(first, end)))

    found = [
        (number, has_data)
        for first, end, has_data in spans(runs_of(changed), data_in)
        for number in range(first, end)
    ]
    assert found == [(number, number in data) for number in sorted(changed)]


@given(st.sets(st.integers(0, 300)), st.sampled_from([1, 4, 7]))
def test_bytes_become_the_chunks_that_they_touch(touched: set[int], chunk_size: int) -> None:
    runs = list(in_chunks(runs_of(touched), chunk_size))
    assert runs == runs_of({byte // chunk_size for byte in touched})


pieces = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3), st.booleans()), max_size=20)


@given(pieces, st.integers(1, 8))
def test_joining_loses_no_chunk_and_keeps_their_order(
    described: list[tuple[int, int, bool]], most: int
) -> None:
    plan, at = [], 0
    for count, gap, data in described:
        at += gap
        ids = b"".join(number.to_bytes(ID_SIZE, "big") for number in range(at, at + count))
        plan.append(Batch(((at, at + count),), ids, data))
        at += count

    def flat(batches: Iterable[Batch]) -> list[tuple[int, bytes, bool]]:
        return [
            (number, batch.known[i * ID_SIZE : (i + 1) * ID_SIZE], batch.data)
            for batch in batches
            for i, number in enumerate(batch.numbers())
        ]

    together = list(joined(plan, most))
    assert flat(together) == flat(plan)
    assert all(len(batch.runs) == 1 or batch.count <= most for batch in together)
    for one, following in zip(together, together[1:], strict=False):
        assert not (one.data and following.data) or one.count + following.count > most
