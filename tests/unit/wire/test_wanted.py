# SPDX-License-Identifier: GPL-2.0-or-later
"""A set of chunk numbers, and what is sent of it, against Python's own sets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.differing import runs
from wire import wanted
from wire.wanted import Wanted

numbers = st.sets(st.integers(0, 99))


@given(st.integers(100, 120), st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100))))
def test_it_is_a_set(chunks: int, added: list[tuple[int, int]]) -> None:
    found, model = Wanted(chunks), set[int]()
    for first, end in added:
        found.add(first, end)
        model |= set(range(first, end))
    assert {n for n in range(chunks) if n in found} == model and len(found) == len(model)
    for first in range(0, chunks, 8):
        assert found.any(first, min(first + 8, chunks)) == bool(
            model & set(range(first, first + 8))
        )
    assert {n for a, b in runs(sorted(model)) for n in range(a, b)} == model


@given(numbers, st.sampled_from([1, 7, 8, 64, 100, 129]))
def test_what_is_sent_comes_back(model: set[int], chunks: int) -> None:
    before, wanted.PART_CHUNKS = wanted.PART_CHUNKS, 64
    try:
        found, at = Wanted(chunks), 0
        for number in model:
            found.add(number, min(number + 1, chunks)) if number < chunks else None
        back = Wanted(chunks)
        for part in found.parts():
            at = back.take(at, part)
        assert at == chunks and list(back.parts()) == list(found.parts())
    finally:
        wanted.PART_CHUNKS = before


@pytest.mark.parametrize("part", [b"", b"\x01", b"\0\0\0", b"\0\x04", b"\xff\xff"])
def test_what_cannot_be_is_refused(part: bytes) -> None:
    with pytest.raises(ValueError, match="for the chunks"):
        Wanted(10).take(0, part)
    with pytest.raises(ValueError, match="for the chunks"):
        Wanted(10).take(10, b"")


def test_every_chunk() -> None:
    assert len(Wanted(13, every=True)) == 13 and len(Wanted(0, every=True)) == 0
