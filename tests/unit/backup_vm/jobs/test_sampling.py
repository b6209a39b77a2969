# SPDX-License-Identifier: GPL-2.0-or-later
"""A part each night comes to everything in its turn."""

import math
from itertools import count

from hypothesis import example, given
from hypothesis import strategies as st

from backup_vm.archive import notes, noting
from backup_vm.jobs.sampling import Candidate, due, packs_to_check
from backup_vm.quantities import Part

THINGS = st.lists(
    st.builds(
        Candidate,
        st.integers(),
        st.integers(0, 1000),
        st.none() | st.booleans(),
        st.integers(0, 100),
    ),
    max_size=30,
    unique_by=lambda one: one.item,
)
PARTS = st.floats(0.01, 1).map(lambda share: Part(share=share)) | st.integers(1, 200).map(
    lambda size: Part(size=size)
)


@given(THINGS, PARTS)
def test_a_part_is_the_oldest_and_no_more_than_two_too_many(
    things: list[Candidate[int]], part: Part
) -> None:
    chosen = due(things, None, part, 1000)
    assert len(set(chosen)) == len(chosen) and bool(chosen) == bool(things)
    taken = [one for one in things if one.item in chosen]
    left = [one for one in things if one.item not in chosen]
    for one in taken:
        for other in left:  # what was damaged has a share of its own
            if one.sound is not False or other.sound is False:
                assert one.since <= other.since
    room, sizes = part.of(sum(one.size for one in things)), sorted(one.size for one in taken)
    assert sum(sizes[:-2]) <= room
    assert not left or sum(sizes) >= room


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


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=8),
    st.integers(20, 100),
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=50, max_size=50),
)
@example([10, 10], 20, 3, [(0, False)] * 50)
@example([10, 10], 20, 3, [(0, True)] * 50)
def test_each_pack_is_looked_at_within_a_bounded_time(
    sizes: list[int], size: int, new: int, nights: list[tuple[int, bool]]
) -> None:
    """By what notes.json says alone: whatever comes each night, whatever is pruned, whatever is
    found damaged, a pack waits no longer than half of the part takes for what was there before.
    """
    names, part = (f"packs/00/{number:016x}.pack" for number in count()), Part(size=size)
    there = dict(zip(names, sizes, strict=False))
    found = notes.Notes()
    deadline = dict[str, int]()
    for night, (gone, damaged) in enumerate(nights):
        there |= {next(names): 1 + size // 2 for _ in range(new)}
        ahead = sum(there.values())
        for name in there:
            deadline.setdefault(name, night + math.ceil(2 * ahead / size) + len(there) + 1)
        found = notes.parse(notes._dump(found), "notes.json")
        now = 1000 + night
        done = due(packs_to_check(list(there), there, found, now), None, part, now)
        assert done or not there
        bad = {notes.short(name) for name in done if damaged}
        present, short = ({notes.short(name) for name in these} for these in (there, done))
        noting.note_scrub(found, not bad, present, short, bad, now)
        for name in done:
            del deadline[name]
        late = [name for name, last in deadline.items() if last < night]
        assert not late, (night, late)
        for name in list(there)[:gone]:
            del there[name]
            deadline.pop(name, None)


def test_what_a_clock_that_was_wrong_dated_ahead_is_due() -> None:
    wrong = Candidate(1, 10**9, True, 5)
    assert due([wrong, Candidate(2, 10, True, 5)], 500, Part(size=1), 1000) == [1]
