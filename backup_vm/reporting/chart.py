# SPDX-License-Identifier: GPL-2.0-or-later
"""Growth over time as an SVG: one line with the area under it, round numbers at the side, dates
below.
"""

import datetime
import math
from collections.abc import Sequence

from backup_vm.reporting.tree import Tree, node
from backup_vm.terminal.text import size_text

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 800, 240, 74, 14, 12, 26
_LINES = 4


def growth(points: Sequence[tuple[int, int]]) -> Tree | None:
    """Bytes at times (Unix seconds, rising). One point alone is shown as such; none as nothing."""
    if not points:
        return None
    start, end = points[0][0], max(points[-1][0], points[0][0] + 1)
    top = _round_up(max(size for _, size in points))
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(time: int) -> float:
        return _LEFT + inner_width * (time - start) / (end - start)

    def y(size: float) -> float:
        return _TOP + inner_height * (1 - size / top)

    parts = []
    for line in range(_LINES + 1):
        size = top * line / _LINES
        high = f"{y(size):.1f}"
        ends = {"x1": _LEFT, "x2": _WIDTH - _RIGHT, "y1": high, "y2": high}
        parts.append(node("line", {**ends, "class": "grid"}))
        place = {"x": _LEFT - 8, "y": f"{y(size) + 4:.1f}", "text-anchor": "end"}
        parts.append(node("text", place, size_text(size)))
    for time in _dates(start, end):
        anchor = "start" if x(time) < _LEFT + 40 else "end" if x(time) > _WIDTH - 60 else "middle"
        place = {"x": f"{x(time):.1f}", "y": _HEIGHT - 8, "text-anchor": anchor}
        parts.append(node("text", place, _date(time)))
    path = f"M{x(points[0][0]):.1f} {y(points[0][1]):.1f}"
    last = {round(x(time)): (time, size) for time, size in points[1:]}
    for time, size in last.values():  # the last of those that share a column of the picture
        # Steps: what is stored grows at sessions, not between them.
        path += f"H{x(time):.1f}V{y(size):.1f}"
    parts.append(node("path", {"d": f"{path}V{y(0):.1f}H{_LEFT}Z", "class": "area"}))
    parts.append(node("path", {"d": path, "class": "line"}))
    for time, size in points if len(points) <= 120 else points[-1:]:
        place = {"cx": f"{x(time):.1f}", "cy": f"{y(size):.1f}", "r": 3, "class": "point"}
        parts.append(node("circle", place, node("title", {}, f"{_date(time)}: {size_text(size)}")))
    about = {
        "viewBox": f"0 0 {_WIDTH} {_HEIGHT}",
        "class": "chart",
        "role": "img",
        "aria-label": f"Space used, {_date(start)} to {_date(points[-1][0])}:"
        f" {size_text(points[0][1])} to {size_text(points[-1][1])}",
    }
    return node("svg", about, *parts)


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
