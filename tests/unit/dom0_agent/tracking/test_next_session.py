# SPDX-License-Identifier: GPL-2.0-or-later
"""The times that sessions are named by."""

from collections.abc import Iterator
from itertools import count

import pytest

from dom0_agent.tracking import next_session
from dom0_agent.tracking.next_session import CLOCK_SLACK
from wire.status import Code, Refused

NOW = 1_800_000_000


def given(proposed: Iterator[int], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The times of one session after another, until one is refused."""
    monkeypatch.setattr("dom0_agent.tracking.next_session.clock.time", lambda: NOW)
    found = [NOW - 3600]
    for time, _ in zip(proposed, range(5 * CLOCK_SLACK), strict=False):
        try:
            found.append(next_session._session_time(found[-1], time))
        except Refused as refused:
            assert refused.code == Code.BUSY
            break
    return found[1:]


@pytest.mark.parametrize("first", [NOW - CLOCK_SLACK, NOW, NOW + CLOCK_SLACK, 0])
def test_no_caller_gets_two_of_one_name_however_many_it_begins(
    first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = given(count(first, 0), monkeypatch)
    assert CLOCK_SLACK <= len(times) == len(set(times)) and times == sorted(times)


def test_the_next_one_begins_when_the_clock_has_gone_on(monkeypatch: pytest.MonkeyPatch) -> None:
    last = given(count(NOW, 0), monkeypatch)[-1]
    monkeypatch.setattr("dom0_agent.tracking.next_session.clock.time", lambda: NOW + 1)
    assert next_session._session_time(last, NOW) == last + 1


def test_after_a_clock_that_was_wrong_time_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dom0_agent.tracking.next_session.clock.time", lambda: NOW)
    assert next_session._session_time(NOW + 10 * CLOCK_SLACK, NOW) == NOW
