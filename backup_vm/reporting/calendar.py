# SPDX-License-Identifier: GPL-2.0-or-later
"""A calendar of sessions as SVG: a column a week, a square a day, the fuller the more sessions it
has.
"""

import datetime
from collections import Counter
from collections.abc import Iterable, Mapping

from backup_vm.reporting.tree import Tree, node
from backup_vm.terminal.text import count_text

WEEKS = 53
_CELL, _GAP, _LEFT, _TOP = 11, 3, 30, 16
_STEP = _CELL + _GAP
_EPOCH = datetime.date(1970, 1, 1)
_LEVELS = ("none", "one", "2 to 4", "more")


def days_of(times: Iterable[int]) -> Counter[int]:
    """Sessions by day of UTC, as number of days since 1970; ``times`` in Unix seconds."""
    return Counter(time // 86400 for time in times)


def calendar(days: Mapping[int, int], last: int, label: str) -> Tree:
    """The year up to the day ``last``, both as days since 1970. Each day has its number as
    ``data-day``.
    """
    today = _EPOCH + datetime.timedelta(days=last)
    first = today - datetime.timedelta(days=today.weekday(), weeks=WEEKS - 1)
    names: list[Tree] = [
        _name(0, _TOP + row * _STEP + 9, name) for row, name in ((0, "Mon"), (2, "Wed"), (4, "Fri"))
    ]
    weeks = []
    month = 0
    for column in range(WEEKS):
        monday = first + datetime.timedelta(weeks=column)
        if monday.month != month and monday.day <= 7:
            names.append(_name(_LEFT + column * _STEP, 10, f"{monday:%b}"))
        month = monday.month
        week = [monday + datetime.timedelta(days=row) for row in range(7)]
        squares = [
            _day(column, row, day, days.get((day - _EPOCH).days, 0))
            for row, day in enumerate(week)
            if day <= today
        ]
        weeks.append(node("g", {}, *squares))
    width, height = _LEFT + WEEKS * _STEP, _TOP + 7 * _STEP
    return node(
        "svg",
        {
            "viewBox": f"0 0 {width} {height}",
            "class": "calendar",
            "role": "img",
            "aria-label": label,
        },
        node("g", {"aria-hidden": "true"}, *names),
        *weeks,
    )


def legend() -> Tree:
    """What the squares' colours mean."""
    parts: list[Tree | str] = ["sessions a day:"]
    for level, name in enumerate(_LEVELS):
        parts += [node("i", {"class": f"level{level}"}), name]
    return node("p", {"class": "key"}, *parts)


def _name(x: int, y: int, text: str) -> Tree:
    return node("text", {"x": x, "y": y}, text)


def _day(column: int, row: int, day: datetime.date, count: int) -> Tree:
    level = 0 if count == 0 else 1 if count == 1 else 2 if count <= 4 else 3
    words = f"{day:%a %d %b %Y}: {count_text(count, 'session') if count else 'no session'}"
    place = {"x": _LEFT + column * _STEP, "y": _TOP + row * _STEP}
    more = {"width": _CELL, "height": _CELL, "rx": 2, "data-day": (day - _EPOCH).days}
    return node("rect", {**place, **more, "class": f"day level{level}"}, node("title", {}, words))
