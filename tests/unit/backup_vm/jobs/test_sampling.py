# SPDX-License-Identifier: GPL-2.0-or-later
"""A part each night comes to everything in its turn."""

from hypothesis import given
from hypothesis import strategies as st

from backup_vm.jobs.sampling import Candidate, due
from backup_vm.quantities import Part

THINGS = st.lists(
    st.builds(
        Candidate,
        st.integers(),
        st.integers(0, 1000),
        st.booleans(),
        st.integers(0, 100),
    ),
    max_size=30,
    unique_by=lambda one: one.item,
)
PARTS = st.floats(0.01, 1).map(lambda share: Part(share=share)) | st.integers(1, 200).map(
    lambda size: Part(size=size)
)


@given(THINGS, PARTS)
def test_a_part_is_the_oldest_and_no_more_than_one_too_many(
    things: list[Candidate[int]], part: Part
) -> None:
    chosen = due(things, None, part, 1000)
    by_item = {one.item: one for one in things}
    taken = [by_item[item] for item in chosen]
    left = [one for one in things if one.item not in set(chosen)]
    assert bool(chosen) == bool(things)
    assert all(one.since <= other.since for one in taken for other in left)
    room = part.of(sum(one.size for one in things))
    assert sum(one.size for one in taken[:-1]) <= room
    assert not left or sum(one.size for one in taken) >= room


@given(THINGS, st.integers(0, 1000))
def test_what_is_due_is_what_was_not_found_sound_lately(
    things: list[Candidate[int]], age: int
) -> None:
    chosen = due(things, age, None, 1000)
    assert set(chosen) == {one.item for one in things if not (one.sound and one.since > 1000 - age)}


@given(THINGS, PARTS, st.integers(1, 3), st.data())
def test_every_thing_has_its_turn_whatever_is_found_and_whatever_comes(
    things: list[Candidate[int]], part: Part, new: int, data: st.DataObject
) -> None:
    """New things come each night, and what is damaged stays so: the rest is reached all the same.

    What there was at first is older than all that comes, so that each night takes some of it."""
    pending = {one.item for one in things}
    night, now = 0, 2000
    while pending:
        before = len(pending)
        for item in due(things, None, part, now):
            pending.discard(item)
            sound = data.draw(st.booleans())
            things = [
                Candidate(one.item, now, sound, one.size) if one.item == item else one
                for one in things
            ]
        assert len(pending) < before
        night, now = night + 1, now + 1
        things += [Candidate(("new", night, at), now, False, 50) for at in range(new)]  # type: ignore[arg-type]


def test_what_a_clock_that_was_wrong_dated_ahead_is_due() -> None:
    wrong = Candidate(1, 10**9, True, 5)
    assert due([wrong, Candidate(2, 10, True, 5)], 500, Part(size=1), 1000) == [1]
