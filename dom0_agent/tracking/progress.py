# SPDX-License-Identifier: GPL-2.0-or-later
"""What the state file has of a volume for each archive: how far the sessions in it are.

Which of these there are together, and what leads from one to another, docs/architecture.md shows.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Self

from wire.layout import LAST_TIME

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
"""Of a file beside the state file, of a session and a volume's id: nothing that leads elsewhere."""
_LARGEST = (1 << 63) - 1
_TIMES = ("time", "mark_time", "base_time")


def checked(record: Any) -> None:
    """Raise TypeError unless every field of a dataclass that was read from a file is of the kind
    that is declared, each number one that can be, and each text a plain name.
    """
    for one in dataclasses.fields(record):
        value = getattr(record, one.name)
        if one.type in (int, bool, str) or one.type == int | None or one.type == str | None:
            declared: tuple[Any, ...] = getattr(one.type, "__args__", (one.type,))
            limit = LAST_TIME if one.name in _TIMES else _LARGEST
            if type(value) not in declared:  # a bool is an int to isinstance
                raise TypeError(f"{one.name} is no {declared[0].__name__}")
            if type(value) is int and not 0 <= value <= limit:
                raise TypeError(f"{one.name} is not a possible number")
            if type(value) is str and not _NAME.fullmatch(value):
                raise TypeError(f"{one.name} is no plain name")


@dataclass
class Committed:
    """The newest session that the backup VM said it holds. Ids and digests in hexadecimal; ``root``
    is that of its record.
    """

    session: str
    sequence: int
    time: int
    size: int
    dedup_domain: str
    digest: str
    root: str


@dataclass
class Pending:
    """A session begun and neither committed nor aborted. ``root`` and the record's ``digest`` are
    known once all of it has been extracted. ``crowded``: the pool was found nearly full while it
    was."""

    session: str
    snapshot: int
    sequence: int
    time: int
    size: int
    full: bool
    dedup_domain: str
    map: str | None
    log: str
    root: str | None = None
    digest: str | None = None
    crowded: bool = False


@dataclass
class Redo:
    """Ids of a committed session that may not all be in the ids file yet."""

    log: str
    session: str
    full: bool
    size: int
    dedup_domain: str


@dataclass
class ArchiveProgress:
    """What is kept for one archive. ``map`` is a file name; None means nothing changed.

    ``mark`` and ``mark_time`` are the highest sequence number of a session *begun* and the time it
    was given: neither goes back when a session is aborted, so that no two records that dom0 sealed
    say the same.
    """

    volume_id: str
    ids: str
    map: str | None = None
    committed: Committed | None = None
    pending: Pending | None = None
    redo: Redo | None = None
    mark: int = 0
    mark_time: int = 0

    @classmethod
    def parsed(cls, fields: dict[str, Any]) -> Self:
        """Undo asdict. Raises TypeError or AttributeError for what is of another shape."""
        for key, kind in (("committed", Committed), ("pending", Pending), ("redo", Redo)):
            if fields.get(key) is not None:
                fields[key] = kind(**fields[key])
                checked(fields[key])
        progress = cls(**fields)
        checked(progress)
        return progress

    def pending_as(self, session: bytes) -> Pending | None:
        """The pending session if it is that one."""
        found = self.pending
        return found if found is not None and found.session == session.hex() else None
