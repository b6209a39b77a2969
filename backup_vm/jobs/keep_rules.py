# SPDX-License-Identifier: GPL-2.0-or-later
"""Which sessions of a volume to keep, and why: the rules of restic and borg, which a wrong clock
cannot turn against you.

Each rule of a number keeps the newest session of each of so many periods, newest first; periods
without a session do not count. Periods are those of UTC, as the sessions' names are. A session is
kept if any rule keeps it, and the newest one always.
"""

import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from backup_vm.quantities import setting

DAY = 86400
AHEAD = DAY
"""Seconds by which a session may be ahead of our clock; further ahead, one of the two clocks is
wrong, and it is kept.
"""
PAUSE = 90 * DAY
"""Seconds without a session after which ``within`` starts again: a clock set far ahead must not
make all before it old.
"""
UNLIMITED = 1 << 62
_DEFAULT = "keep_default"
_DIGITS = 18
_UNITS = {"h": 3600, "d": DAY, "w": 7 * DAY, "m": 30 * DAY, "y": 365 * DAY}
_DURATION = r"([0-9]{1,9}[hdwmy])+"
_PERIODS: dict[str, Callable[[int], tuple[int, ...]]] = {
    "hourly": lambda at: time.gmtime(at)[:4],
    "daily": lambda at: time.gmtime(at)[:3],
    # 1 January 1970 was a Thursday; weeks begin on Mondays.
    "weekly": lambda at: ((at // DAY + 3) // 7,),
    "monthly": lambda at: time.gmtime(at)[:2],
    "yearly": lambda at: time.gmtime(at)[:1],
}


class Rules(NamedTuple):
    """How many to keep of each kind, ``within`` in seconds, ``tag``: those with one of these. Zero
    or empty: no such rule.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: int = 0
    tag: frozenset[str] = frozenset()

    def any(self) -> bool:
        """Whether there is any rule."""
        return self != Rules()


DEFAULT = Rules(within=DAY, daily=30, weekly=UNLIMITED)
"""All of the last day, daily for a month, weekly after."""


class Candidate(NamedTuple):
    """A session as far as the rules look at it. ``time`` in Unix seconds."""

    time: int
    tags: frozenset[str] = frozenset()


def reasons(sessions: Sequence[Candidate], rules: Rules, now: int) -> list[list[str]]:
    """For each session of one volume, in the order in which they were made, why it is kept;
    nothing: it is to go.
    """
    why: list[list[str]] = [[] for _ in sessions]
    if not sessions:
        return why
    why[-1].append("newest")
    newest_first = sorted(
        range(len(sessions)), key=lambda at: (sessions[at].time, at), reverse=True
    )
    ahead = [at for at in newest_first if sessions[at].time > now + AHEAD]
    for at in ahead:
        why[at].append("its time is in the future")
    for at, session in enumerate(sessions):
        why[at] += [f"tag {tag}" for tag in sorted(session.tags & rules.tag)]
    counted = newest_first[len(ahead) :]
    for number, at in enumerate(counted[: rules.last]):
        why[at].append(f"last {number + 1}")
    for name, period in _PERIODS.items():
        _periods(sessions, counted, name, period, getattr(rules, name), why)
    if rules.within:
        for at in _within([sessions[at].time for at in counted], rules.within):
            why[counted[at]].append(f"within {duration_text(rules.within)}")
    return why


def _periods(
    sessions: Sequence[Candidate],
    counted: Iterable[int],
    name: str,
    period: Callable[[int], tuple[int, ...]],
    wanted: int,
    why: list[list[str]],
) -> None:
    seen: set[tuple[int, ...]] = set()
    for at in counted:
        if len(seen) >= wanted:
            return
        key = period(sessions[at].time)
        if key not in seen:
            seen.add(key)
            why[at].append(f"{name} {len(seen)}")


def _within(times: Sequence[int], span: int) -> Iterable[int]:
    """Indexes of the times, newest first, that are within ``span`` of the newest, or of the newest
    before a long pause.
    """
    reference = times[0] if times else 0
    for at, one in enumerate(times):
        if at and times[at - 1] - one > PAUSE:
            reference = one
        if reference - one <= span:
            yield at


def parse_count(text: str) -> int:
    """A number of sessions from 1 on, or ``unlimited``; raise ValueError."""
    if text in ("unlimited", "-1"):
        return UNLIMITED
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= _DIGITS else 0
    if number < 1:
        raise ValueError(
            f"{text[:_DIGITS]!r} must be a number, 1 or more, or 'unlimited'; to remove all"
            " sessions of a volume use: sparsebak delete"
        )
    return number


def parse_duration(text: str) -> int:
    """Seconds of ``1y2m3w4d5h``: years of 365 days, months of 30; raise ValueError."""
    if not re.fullmatch(_DURATION, text):
        raise ValueError(f"{text!r} is not a length of time such as 1d, 2w or 1y6m")
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([hdwmy])", text))


def parse_retention(text: str) -> int:
    """Seconds for which an archive is to lock what is stored; raise ValueError."""
    from backup_vm.archive.parameters import LONGEST_RETENTION

    seconds = parse_duration(text)
    if not DAY <= seconds <= LONGEST_RETENTION:
        raise ValueError(f"{text!r} is not from 1d to 366d; what stays is locked again and again")
    return seconds


def duration_text(seconds: int) -> str:
    """Undo parse_duration, up to how it is written."""
    parts = []
    for unit in ("y", "m", "d", "h"):
        count, seconds = divmod(seconds, _UNITS[unit])
        parts += [f"{count}{unit}"] if count else []
    return "".join(parts)


KEYS = {f"keep_{name}": name for name in Rules._fields}
"""The rules as the settings file names them, and with dashes the command line."""


def parse_table(raw: dict[str, Any], table: str = "prune") -> Rules:
    """Rules from a table of a settings file (``keep_daily = 7``), or ``keep_default = true`` in
    their stead; raise ValueError, which names the ``table`` where nothing else tells.
    """
    raw = dict(raw)
    default = raw.pop(_DEFAULT, False)
    if default is True and not raw:
        return DEFAULT
    if default is not False:
        raise ValueError(f"{_DEFAULT} = true cannot be combined with other rules")
    if unknown := [key for key in raw if key not in KEYS]:
        raise ValueError(f"[{table}] {unknown[0]!r} is not a rule; known are {', '.join(KEYS)}")
    return parse_rules(raw)


def parse_rules(raw: dict[str, Any]) -> Rules:
    """Rules from a table (``keep_daily = 7``); raise ValueError."""
    rules = Rules()
    for key, value in raw.items():
        if key not in KEYS:
            raise ValueError(f"{key!r} is not a rule; known are {', '.join(KEYS)}")
        rules = rules._replace(**{KEYS[key]: _value(key, value)})
    return rules


def _value(key: str, value: Any) -> Any:
    if key == "keep_tag":
        if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
            raise ValueError("keep_tag must be a list of texts")
        return frozenset(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{key} must be a number or a text")
    parse = parse_duration if key == "keep_within" else parse_count
    return setting(key, parse, str(value))
