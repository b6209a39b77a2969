# SPDX-License-Identifier: GPL-2.0-or-later
"""Which chunks are asked for together."""

from hypothesis import given
from hypothesis import strategies as st

from backup_vm.jobs.distant_image import _runs
from wire.chunks import ZERO_ID

IDS = st.lists(st.sampled_from([ZERO_ID, b"a" * 32]), max_size=40)


@given(IDS, st.integers(1, 9))
def test_all_that_have_data_are_asked_for_once_and_few_at_a_time(
    ids: list[bytes], most: int
) -> None:
    asked = [range(start, end) for start, end in _runs(ids, most)]
    numbers = [number for some in asked for number in some]
    assert numbers == sorted(set(numbers))
    assert {n for n, one in enumerate(ids) if one != ZERO_ID} <= set(numbers)
    for some in asked:
        assert 1 <= len(some) <= most and ZERO_ID not in (ids[some[0]], ids[some[-1]])
    assert len(asked) <= sum(one != ZERO_ID for one in ids)
