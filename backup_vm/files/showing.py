# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said of files, as text and as data."""

import stat
import time
from typing import Any

from backup_vm.files.answers import Stat
from backup_vm.files.session import shown

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
_NANOSECONDS = 10**9


def text_of(raw: bytes) -> str:
    """A name as JSON has it: bytes that are not UTF-8 as Python's surrogateescape writes them."""
    return raw.decode("utf-8", "surrogateescape")


def type_of(mode: int) -> str:
    """What kind of file it is."""
    return _TYPES.get(stat.S_IFMT(mode), "unknown")


def time_text(nanoseconds: int) -> str:
    """A time in UTC: ``2026-11-23 06:15:00``; seconds since 1970 where the calendar has none."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(nanoseconds // _NANOSECONDS))
    except (OverflowError, ValueError, OSError):
        return f"@{nanoseconds // _NANOSECONDS}"


def row_of(name: str, about: Stat) -> list[str]:
    """A line of ``ls -l``."""
    size = str(about.size)
    if stat.S_ISCHR(about.mode) or stat.S_ISBLK(about.mode):
        size = f"{about.major},{about.minor}"
    owner = [str(about.links), str(about.uid), str(about.gid)]
    return [stat.filemode(about.mode), *owner, size, time_text(about.mtime), name]


NUMBERS = frozenset({1, 2, 3, 4})
"""Columns of row_of that are flush right."""


def data_of(path: bytes, about: Stat) -> dict[str, Any]:
    """What is said of a file, for programs."""
    return {"path": text_of(path), "type": type_of(about.mode), **about._asdict()}


def lines_of(path: bytes, about: Stat, target: bytes, attributes: dict[str, bytes]) -> list[str]:
    """All of one file."""
    named = shown(path) + (f" -> {shown(target)}" if target else "")
    rows = [
        ("path", named),
        ("type", type_of(about.mode)),
        ("size", str(about.size)),
        ("mode", f"{stat.filemode(about.mode)} ({stat.S_IMODE(about.mode):04o})"),
        ("owner", f"{about.uid}:{about.gid}"),
        ("names", str(about.links)),
        *((word, precise(getattr(about, f"{word[0]}time"))) for word in _TIMES),
    ]
    if stat.S_ISCHR(about.mode) or stat.S_ISBLK(about.mode):
        rows.append(("device", f"{about.major},{about.minor}"))
    rows += [("attribute", _attribute(*one)) for one in sorted(attributes.items())]
    return [f"{word + ':':<11}{value}" for word, value in rows]


_TIMES = ("accessed", "modified", "changed")


def precise(nanoseconds: int) -> str:
    """A time with its nanoseconds."""
    return f"{time_text(nanoseconds)}.{nanoseconds % _NANOSECONDS:09} UTC"


def _attribute(name: str, value: bytes) -> str:
    raw = name.encode("utf-8", "surrogateescape")
    return f"{shown(raw)} = {shown(value[:200])}{' ...' if len(value) > 200 else ''}"
