# SPDX-License-Identifier: GPL-2.0-or-later
"""Growth over time as an SVG: one line with the area under it, round numbers at the side, dates
below.
"""

import datetime
import math
from collections.abc import Sequence

from backup_vm.terminal.text import size_text

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 800, 240, 74, 14, 12, 26
_LINES = 4


def growth(points: Sequence[tuple[int, int]]) -> str:
    """Bytes at times (Unix seconds, rising). One point alone is shown as such; none as nothing."""
    if not points:
        return ""
    start, end = points[0][0], max(points[-1][0], points[0][0] + 1)
    top = _round_up(max(size for _, size in points))
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(time: int) -> float:
        return _LEFT + inner_width * (time - start) / (end - start)

    def y(size: float) -> float:
        return _TOP + inner_height * (1 - size / top)

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" class="chart" role="img" aria-label="Space used'
        ' over time">'
    ]
    for line in range(_LINES + 1):
        size = top * line / _LINES
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(size):.1f}" y2="{y(size):.1f}"'
            ' class="grid"/>'
        )
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y(size) + 4:.1f}"'
            f' text-anchor="end">{size_text(size)}</text>'
        )
    for time in _dates(start, end):
        anchor = "start" if x(time) < _LEFT + 40 else "end" if x(time) > _WIDTH - 60 else "middle"
        parts.append(
            f'<text x="{x(time):.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{_date(time)}</text>'
        )
    path = f"M{x(points[0][0]):.1f} {y(points[0][1]):.1f}"
    for time, size in points[1:]:
        path += (  # what is stored grows at sessions, not between them
            f"H{x(time):.1f}V{y(size):.1f}"
        )
    parts.append(
        f'<path d="{path}V{y(0):.1f}H{_LEFT}Z" class="area"/><path d="{path}" class="line"/>'
    )
    for time, size in points if len(points) <= 120 else points[-1:]:
        words = f"{_date(time)}: {size_text(size)}"
        parts.append(
            f'<circle cx="{x(time):.1f}" cy="{y(size):.1f}" r="3"'
            f' class="point"><title>{words}</title></circle>'
        )
    return "".join([*parts, "</svg>"])


def _round_up(size: int) -> int:
    """The next round number of its unit: 1, 2, 4, 5 or 10 of 1, 10 or 100 KiB, MiB..."""
    unit = int(1024 ** int(math.log(max(size, 1), 1024)))
    for step in (1, 2, 4, 5, 8, 10, 20, 40, 50, 80, 100, 200, 400, 500, 800, 1024):
        if size <= step * unit:
            return step * unit
    return size


def _dates(start: int, end: int) -> list[int]:
    if end - start < 2:
        return [start]
    return [start + (end - start) * at // 4 for at in range(5)]


def _date(time: int) -> str:
    return f"{datetime.datetime.fromtimestamp(time, datetime.UTC):%d %b %Y}"
