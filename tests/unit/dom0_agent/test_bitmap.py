# SPDX-License-Identifier: GPL-2.0-or-later
import time
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from dom0_agent import bitmap
from dom0_agent.bitmap import GRAIN, Bitmap

ranges = st.lists(st.tuples(st.integers(0, 300 * GRAIN), st.integers(0, 40 * GRAIN)), max_size=12)


def built(marks: list[tuple[int, int]]) -> tuple[Bitmap, set[int]]:
    changed, model = Bitmap(), set()
    for start, length in marks:
        changed.mark(start, start + length)
        if length:
            model |= set(range(start // GRAIN, (start + length - 1) // GRAIN + 1))
    return changed, model


def grains(changed: Bitmap, per_unit: int = 1, units: int = 1 << 20) -> set[int]:
    runs = list(changed.runs(per_unit, units))
    assert all(a[1] < b[0] for a, b in zip(runs, runs[1:], strict=False)), (
        "runs must be in order and apart"
    )
    return {unit for first, end in runs for unit in range(first, end)}


@given(ranges)
def test_runs_are_exactly_what_was_marked(marks: list[tuple[int, int]]) -> None:
    changed, model = built(marks)
    assert grains(changed) == model


@given(ranges, st.sampled_from([1, 2, 4, 64]), st.integers(0, 400))
def test_runs_in_larger_units(marks: list[tuple[int, int]], per_unit: int, units: int) -> None:
    changed, model = built(marks)
    assert grains(changed, per_unit, units) == {
        grain // per_unit for grain in model if grain // per_unit < units
    }


def bit_by_bit(bits: bytes, per_unit: int, units: int) -> list[tuple[int, int]]:
    marked = [byte >> bit & 1 for byte in bits for bit in range(8)]
    found, begin = [], None
    for unit in range(min(units, -(-len(marked) // per_unit)) + 1):
        is_marked = unit < units and any(marked[unit * per_unit : (unit + 1) * per_unit])
        if is_marked and begin is None:
            begin = unit
        elif not is_marked and begin is not None:
            found.append((begin, unit))
            begin = None
    return found


torn = st.lists(st.sampled_from([b"\0", b"\xff", b"\x80", b"\1", b"\x55"]) | st.binary(max_size=9))


@given(
    torn.map(lambda parts: b"".join(part * (1 + len(part) * 7 % 5) for part in parts)),
    st.sampled_from([1, 2, 4, 8, 16, 32, 64]),
    st.integers(0, 4000),
    st.sampled_from([64, 128, 4096]),
)
def test_runs_are_those_found_bit_by_bit(
    bits: bytes, per_unit: int, units: int, window: int
) -> None:
    with mock.patch.object(bitmap, "_WINDOW", window):
        assert list(Bitmap(bits).runs(per_unit, units)) == bit_by_bit(bits, per_unit, units)


@given(ranges, ranges)
def test_a_merge_is_the_union(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    (a, model_a), (b, model_b) = built(one), built(other)
    a.merge(b)
    assert grains(a) == model_a | model_b
    assert grains(b) == model_b


@given(ranges)
def test_the_file_form_has_an_inverse(marks: list[tuple[int, int]]) -> None:
    changed, model = built(marks)
    again = Bitmap.from_bytes(changed.to_bytes())
    assert again is not None and grains(again) == model


@given(ranges, st.data())
def test_damage_to_the_file_is_noticed(marks: list[tuple[int, int]], data: st.DataObject) -> None:
    raw = built(marks)[0].to_bytes()
    at = data.draw(st.integers(0, len(raw) - 1))
    assert Bitmap.from_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]) is None
    assert Bitmap.from_bytes(raw[:at]) is None


@given(ranges, st.integers(0, 400 * GRAIN))
def test_changed_counts_whole_grains_within_the_size(
    marks: list[tuple[int, int]], size: int
) -> None:
    changed, model = built(marks)
    assert changed.changed(size) == min(len({g for g in model if g * GRAIN < size}) * GRAIN, size)


def test_a_terabyte_costs_two_megabytes() -> None:
    assert len(Bitmap.everything(1 << 40).to_bytes()) < (1 << 21) + 100


def test_counting_does_not_depend_on_how_torn_it_is() -> None:
    """List counts, for every volume; a qube writes where it likes."""
    torn = Bitmap(b"\x55" * (2 << 20))
    start = time.process_time()
    assert torn.changed(1 << 40) == 1 << 39
    assert time.process_time() - start < 3  # bit by bit it took ten seconds


def test_runs_do_not_depend_on_how_torn_it_is() -> None:
    """Extract goes through them, and a snapshot's offer counts them."""
    torn, start = Bitmap(b"\x55" * (2 << 20)), time.process_time()
    assert sum(end - first for first, end in torn.runs(1, 1 << 24)) == 1 << 23
    assert time.process_time() - start < 3  # bit by bit it took eight seconds
