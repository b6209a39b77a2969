# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules against a model written the other way round: period by period, from the newest session
back.
"""

import datetime
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.jobs.keep_rules import (
    AHEAD,
    DAY,
    DEFAULT,
    UNLIMITED,
    Candidate,
    Rules,
    duration_text,
    parse_count,
    parse_duration,
    parse_rules,
    reasons,
)

NOW = 1_800_000_000
NAMES = {
    "hourly": "%Y%m%d%H",
    "daily": "%Y%m%d",
    "weekly": "%G-%V",
    "monthly": "%Y%m",
    "yearly": "%Y",
}
counts = st.sampled_from([0, 0, 1, 2, 5, UNLIMITED])
rules = st.builds(
    Rules,
    last=counts,
    hourly=counts,
    daily=counts,
    weekly=counts,
    monthly=counts,
    yearly=counts,
    within=st.sampled_from([0, 0, 3600, DAY, 30 * DAY]),
    tag=st.sampled_from([frozenset(), frozenset({"gold"})]),
)
candidates = st.lists(
    st.builds(
        Candidate,
        st.integers(0, 3 * 365 * DAY).map(lambda ago: NOW - ago)
        | st.integers(0, 3 * DAY).map(lambda ago: NOW - ago),
        st.sampled_from([frozenset(), frozenset(), frozenset({"gold"}), frozenset({"other"})]),
    ),
    max_size=40,
)


def kept(sessions: list[Candidate], wanted: Rules, now: int = NOW) -> list[Candidate]:
    return [
        session
        for session, why in zip(sessions, reasons(sessions, wanted, now), strict=True)
        if why
    ]


@given(candidates, rules)
def test_what_is_kept_is_what_the_model_keeps(sessions: list[Candidate], wanted: Rules) -> None:
    keep = {len(sessions) - 1} if sessions else set()
    order = sorted(range(len(sessions)), key=lambda at: (-sessions[at].time, -at))
    keep |= set(order[: wanted.last]) | {at for at in order if sessions[at].tags & wanted.tag}
    for name, form in NAMES.items():
        periods: dict[str, int] = {}
        for at in order:
            date = datetime.datetime.fromtimestamp(sessions[at].time, datetime.UTC)
            periods.setdefault(date.strftime(form), at)
        keep |= set(list(periods.values())[: getattr(wanted, name)])
    result = reasons(sessions, wanted, NOW)
    found = {at for at, why in enumerate(result) if [w for w in why if not w.startswith("within")]}
    assert found == keep
    if wanted.within and sessions:
        recent = {
            at for at in order if sessions[order[0]].time - sessions[at].time <= wanted.within
        }
        assert recent <= {at for at, why in enumerate(result) if why}


@given(candidates, rules)
def test_pruning_twice_removes_nothing_more(sessions: list[Candidate], wanted: Rules) -> None:
    once = kept(sessions, wanted)
    assert kept(once, wanted) == once


@given(candidates, st.sampled_from([-1, 1]), st.integers(2 * DAY, 30 * 365 * DAY))
def test_a_wrong_clock_of_ours_deletes_nothing_that_the_right_one_would_not(
    sessions: list[Candidate], direction: int, by: int
) -> None:
    right, wrong = kept(sessions, DEFAULT), kept(sessions, DEFAULT, NOW + direction * by)
    assert set(right) <= set(wrong) or direction < 0
    if direction < 0 and sessions and min(s.time for s in sessions) > NOW - by + AHEAD:
        assert wrong == sessions, "all of them are ahead, and so none goes"


def test_a_session_made_while_the_clock_was_far_ahead_makes_no_other_old() -> None:
    sessions = [Candidate(NOW - hour * 3600) for hour in range(20, 0, -1)]
    for ahead in (10 * 365 * DAY, 100 * DAY):
        wrong = Candidate(NOW + ahead)
        assert kept([*sessions, wrong], DEFAULT) == [*sessions, wrong]
        assert kept([*sessions, wrong], DEFAULT, NOW + ahead) == [*sessions, wrong], (
            "also while it still is ahead"
        )
        back = [*sessions, wrong, Candidate(NOW)]
        assert kept(back, DEFAULT) == back


def test_the_default() -> None:
    sessions = [Candidate(NOW - hour * 3600) for hour in range(24 * 365, -1, -1)]
    ages = [(NOW - session.time) / DAY for session in kept(sessions, DEFAULT)]
    assert sum(age <= 1 for age in ages) == 25
    assert sum(1 < age <= 29 for age in ages) == 28
    assert 47 <= sum(age > 30 for age in ages) <= 49


def test_reasons_are_told() -> None:
    sessions = [Candidate(NOW - 5 * DAY, frozenset({"gold"})), Candidate(NOW - DAY), Candidate(NOW)]
    wanted = Rules(last=1, daily=2, tag=frozenset({"gold"}))
    assert reasons(sessions, wanted, NOW) == [
        ["tag gold"],
        ["daily 2"],
        ["newest", "last 1", "daily 1"],
    ]
    assert reasons([], wanted, NOW) == []


def test_weeks_begin_on_mondays() -> None:
    monday = int(datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC).timestamp())
    sessions = [Candidate(monday - 1), Candidate(monday), Candidate(monday + 6 * DAY)]
    assert kept(sessions, Rules(weekly=5), monday + 8 * DAY) == [sessions[0], sessions[2]]


@given(st.integers(0, 500), st.integers(0, 11), st.integers(0, 29), st.integers(0, 23))
def test_lengths_of_time(years: int, months: int, days: int, hours: int) -> None:
    text = f"{years}y{months}m{days}d{hours}h"
    seconds = parse_duration(text)
    assert seconds == (years * 365 + months * 30 + days) * DAY + hours * 3600
    assert not seconds or parse_duration(duration_text(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "1", "d", "1x", "1d ", "-1d", "1.5d", "9" * 400 + "y"])
def test_no_length_of_time(text: str) -> None:
    with pytest.raises(ValueError, match="length of time"):
        parse_duration(text)


def test_counts_and_rules_from_the_settings_file() -> None:
    assert parse_count("7") == 7 and parse_count("unlimited") == parse_count("-1") == UNLIMITED
    found = parse_rules(
        {"keep_daily": 7, "keep_weekly": "unlimited", "keep_within": "2d", "keep_tag": ["gold"]}
    )
    assert found == Rules(daily=7, weekly=UNLIMITED, within=2 * DAY, tag=frozenset({"gold"}))
    for raw in (
        {"keep_dayly": 1},
        {"keep_daily": 0},
        {"keep_daily": True},
        {"keep_daily": [1]},
        {"keep_tag": "x"},
    ):
        with pytest.raises(ValueError, match="keep|1 or more"):
            parse_rules(raw)
    assert time.gmtime(NOW).tm_year == 2027
