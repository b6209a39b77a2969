# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers and tables as people read them."""

import os
import sys
from collections.abc import Sequence

from common.text import session_name

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def journal_prefix(level: int) -> str:
    """What the journal takes a line's priority from (sd-daemon(3)); empty where standard error does
    not go there.
    """
    return (
        f"<{level}>"
        if "JOURNAL_STREAM" in os.environ and not (sys.stderr and sys.stderr.isatty())
        else ""
    )


def size_text(size: float) -> str:
    """Bytes in the largest unit that leaves a number of one or more: ``1.4 GiB``."""
    for unit in _UNITS:
        if abs(size) < 1024 or unit == _UNITS[-1]:
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def ratio_text(ratio: float) -> str:
    """How many times smaller: ``2.4x``."""
    return f"{ratio:.1f}x"


def count_text(count: int, what: str) -> str:
    """How many: ``1 session``, ``2 sessions``, ``no sessions``."""
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"


def waiting_text(waiting: int, until: int) -> list[str]:
    """What is to be said of bytes that a lock keeps, the last of them before ``until`` (Unix
    seconds); nothing where there are none.
    """
    if not waiting:
        return []
    return [
        f"{size_text(waiting)} of what was removed or replaced may not be removed for good before"
        f" {session_name(until)}; a prune after that gives it back."
    ]


def table(rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> str:
    """Rows in columns; those whose numbers are in ``right`` are set flush right."""
    widths = (
        [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    )
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
