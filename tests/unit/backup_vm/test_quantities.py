# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes, shares and rates as people write them."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.quantities import Part, parse_part, parse_size
from backup_vm.rate import LEAST, Rate, parse_rate
from tests.patience import AT_ONCE


@given(st.integers(0, 10**9), st.sampled_from(" KMGT"), st.sampled_from(["", "B", "iB"]))
def test_sizes(number: int, unit: str, ending: str) -> None:
    text = f"{number}{unit.strip()}{ending}"
    assert parse_size(text) == number * 1024 ** " KMGT".index(unit)


@given(st.integers(1, 100), st.integers(0, 10**15))
def test_a_share_is_of_the_whole(share: int, total: int) -> None:
    assert parse_part(f"{share}%").of(total) == pytest.approx(total * share / 100)


def test_a_size_is_what_it_is_of_any_whole() -> None:
    assert parse_part("20G") == Part(size=20 << 30) and parse_part("20G").of(5) == 20 << 30
    assert parse_part("0.5%").of(1000) == pytest.approx(5)


@pytest.mark.parametrize("text", ["", "0", "0%", "101%", "-5%", "5 %", "x", "1e3", "5%5", "9P"])
def test_what_is_no_part(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not|is nothing"):
        parse_part(text)


def test_a_rate_has_a_least() -> None:
    assert parse_rate("20M") == 20 << 20 and parse_rate("64K/s") == LEAST
    for text in ("63K", "0", "fast"):
        with pytest.raises(ValueError, match=r"too slow|is not a size"):
            parse_rate(text)


def test_a_rate_is_kept_on_average() -> None:
    rate, begun = Rate(4 << 20), time.monotonic()
    for _ in range(20):
        rate.spend(64 << 10)
    assert 0.3 <= time.monotonic() - begun < AT_ONCE
    begun = time.monotonic()
    for _ in range(1000):
        Rate().spend(1 << 40)
    assert time.monotonic() - begun < AT_ONCE
