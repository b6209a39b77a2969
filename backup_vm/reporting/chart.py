# SPDX-License-Identifier: GPL-2.0-or-later
"""Growth over time as an SVG: one line with the area under it, round numbers at the side, dates
below.
"""

import datetime
import math
from collections.abc import Iterator, Sequence

from backup_vm.reporting.tree import Tree, node
from backup_vm.terminal.text import size_text

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 800, 240, 74, 14, 12, 26
_LINES = 4


class _Plane:
    """Where a time and a size are in the picture."""

    def __init__(self, start: int, end: int, top: int) -> None:
        self.start, self.end, self.top = start, end, top

    def x(self, time: int) -> float:
        """From the left, for Unix seconds."""
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (time - self.start) / (self.end - self.start)

    def y(self, size: float) -> float:
        """From the top, for bytes."""
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - size / self.top)


def growth(points: Sequence[tuple[int, int]]) -> Tree | None:
    """Bytes at times (Unix seconds, rising). One point alone is shown as such; none as nothing."""
    if not points:
        return None
    start, end = points[0][0], max(points[-1][0], points[0][0] + 1)
    plane = _Plane(start, end, _round_up(max(size for _, size in points)))
    about = {
        "viewBox": f"0 0 {_WIDTH} {_HEIGHT}",
        "class": "chart",
        "role": "img",
        "aria-label": f"Space used, {_date(start)} to {_date(points[-1][0])}:"
        f" {size_text(points[0][1])} to {size_text(points[-1][1])}",
    }
    parts = [*_grid(plane), *_date_line(plane), *_curve(plane, points), *_marks(plane, points)]
    return node("svg", about, *parts)


def _grid(plane: _Plane) -> Iterator[Tree]:
    """Lines across, each with its size."""
    for line in range(_LINES + 1):
        size = plane.top * line / _LINES
        high = f"{plane.y(size):.1f}"
        ends = {"x1": _LEFT, "x2": _WIDTH - _RIGHT, "y1": high, "y2": high}
        yield node("line", {**ends, "class": "grid"})
        place = {"x": _LEFT - 8, "y": f"{plane.y(size) + 4:.1f}", "text-anchor": "end"}
        yield node("text", place, size_text(size))


def _date_line(plane: _Plane) -> Iterator[Tree]:
    """Dates below."""
    for time in _dates(plane.start, plane.end):
        at = plane.x(time)
        anchor = "start" if at < _LEFT + 40 else "end" if at > _WIDTH - 60 else "middle"
        place = {"x": f"{at:.1f}", "y": _HEIGHT - 8, "text-anchor": anchor}
        yield node("text", place, _date(time))


def _curve(plane: _Plane, points: Sequence[tuple[int, int]]) -> Iterator[Tree]:
    """The line, and the area under it. Steps: what is stored grows at sessions, not between
    them.
    """
    path = f"M{plane.x(points[0][0]):.1f} {plane.y(points[0][1]):.1f}"
    # Of those that share a column of the picture the last one.
    last = {round(plane.x(time)): (time, size) for time, size in points[1:]}
    for time, size in last.values():
        path += f"H{plane.x(time):.1f}V{plane.y(size):.1f}"
    yield node("path", {"d": f"{path}V{plane.y(0):.1f}H{_LEFT}Z", "class": "area"})
    yield node("path", {"d": path, "class": "line"})


def _marks(plane: _Plane, points: Sequence[tuple[int, int]]) -> Iterator[Tree]:
    """A mark at each point that tells its date and size; of very many at the last."""
    for time, size in points if len(points) <= 120 else points[-1:]:
        place = {"cx": f"{plane.x(time):.1f}", "cy": f"{plane.y(size):.1f}", "r": 3}
        told = node("title", {}, f"{_date(time)}: {size_text(size)}")
        yield node("circle", {**place, "class": "point"}, told)


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
