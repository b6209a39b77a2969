# SPDX-License-Identifier: GPL-2.0-or-later
"""A calendar of sessions as SVG: a column a week, a square a day, the fuller the more sessions it
has.
"""

import datetime
from collections import Counter
from collections.abc import Iterable

WEEKS = 53
_CELL, _GAP, _LEFT, _TOP = 11, 3, 30, 16
_STEP = _CELL + _GAP


def calendar(times: Iterable[int], today: datetime.date, label: str) -> str:
    """The last year up to ``today``; ``times`` in Unix seconds, days in UTC; ``label`` is already
    escaped.
    """
    days = Counter(datetime.datetime.fromtimestamp(time, datetime.UTC).date() for time in times)
    first = today - datetime.timedelta(days=today.weekday(), weeks=WEEKS - 1)
    width, height = _LEFT + WEEKS * _STEP, _TOP + 7 * _STEP
    parts = [
        f'<svg viewBox="0 0 {width} {height}" class="calendar" role="img" aria-label="{label}">'
    ]
    parts += [
        f'<text x="0" y="{_TOP + row * _STEP + 9}">{name}</text>'
        for row, name in ((0, "Mon"), (2, "Wed"), (4, "Fri"))
    ]
    month = 0
    for column in range(WEEKS):
        monday = first + datetime.timedelta(weeks=column)
        if monday.month != month and monday.day <= 7:
            parts.append(f'<text x="{_LEFT + column * _STEP}" y="10">{monday:%b}</text>')
        month = monday.month
        for row in range(7):
            day = monday + datetime.timedelta(days=row)
            if day <= today:
                parts.append(_day(column, row, day, days[day]))
    return "".join([*parts, "</svg>"])


def _day(column: int, row: int, day: datetime.date, count: int) -> str:
    level = 0 if count == 0 else 1 if count == 1 else 2 if count <= 4 else 3
    words = f"{day:%a %d %b %Y}: {count or 'no'} session{'' if count == 1 else 's'}"
    x, y = _LEFT + column * _STEP, _TOP + row * _STEP
    place = f'x="{x}" y="{y}" width="{_CELL}" height="{_CELL}" rx="2"'
    return f'<rect {place} class="day level{level}"><title>{words}</title></rect>'
