# SPDX-License-Identifier: GPL-2.0-or-later
"""What the state file has of a volume for each archive: how far the sessions in it are.

Which of these there are together, and what leads from one to another, docs/architecture.md shows.
"""

import re
from typing import Any, NamedTuple, Self

from wire.layout import LAST_TIME

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
"""Of a file beside the state file, of a session and a volume's id: nothing that leads elsewhere."""
_LARGEST = (1 << 63) - 1
_TIMES = ("time", "mark_time", "base_time")


def declared(kind: Any) -> dict[str, Any]:
    """The fields of what a state file holds, and of what kind each is: those of a NamedTuple, or
    what the class takes.
    """
    hints = kind.__annotations__ if issubclass(kind, tuple) else kind.__init__.__annotations__
    return {name: hint for name, hint in hints.items() if name != "return"}


def check_fields(record: Any) -> None:
    """Raise TypeError unless every field of what was read from a file is of the kind that is
    declared, each number one that can be, and each text a plain name.
    """
    for name, kind in declared(type(record)).items():
        value = getattr(record, name)
        if kind in (int, bool, str) or kind == int | None or kind == str | None:
            kinds: tuple[Any, ...] = getattr(kind, "__args__", (kind,))
            limit = LAST_TIME if name in _TIMES else _LARGEST
            if type(value) not in kinds:  # a bool is an int to isinstance
                raise TypeError(f"{name} is no {kinds[0].__name__}")
            if type(value) is int and not 0 <= value <= limit:
                raise TypeError(f"{name} is not a possible number")
            if type(value) is str and not _NAME.fullmatch(value):
                raise TypeError(f"{name} is no plain name")


class Committed(NamedTuple):
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


class Pending:
    """A session begun and neither committed nor aborted. ``root`` and the record's ``digest`` are
    known once all of it has been extracted. ``crowded``: the pool was found nearly full while it
    was."""

    def __init__(
        self,
        session: str,
        snapshot: int,
        sequence: int,
        time: int,
        size: int,
        full: bool,
        dedup_domain: str,
        map: str | None,
        log: str,
        root: str | None = None,
        digest: str | None = None,
        crowded: bool = False,
    ) -> None:
        self.session, self.snapshot, self.sequence = session, snapshot, sequence
        self.time, self.size, self.full = time, size, full
        self.dedup_domain, self.map, self.log = dedup_domain, map, log
        self.root, self.digest, self.crowded = root, digest, crowded


class Redo(NamedTuple):
    """Ids of a committed session that may not all be in the ids file yet."""

    log: str
    session: str
    full: bool
    size: int
    dedup_domain: str


class ArchiveProgress:
    """What is kept for one archive. ``map`` is a file name; None means nothing changed.

    ``mark`` and ``mark_time`` are the highest sequence number of a session *begun* and the time it
    was given: neither goes back when a session is aborted, so that no two records that dom0 sealed
    say the same.
    """

    def __init__(
        self,
        volume_id: str,
        ids: str,
        map: str | None = None,
        committed: Committed | None = None,
        pending: Pending | None = None,
        redo: Redo | None = None,
        mark: int = 0,
        mark_time: int = 0,
    ) -> None:
        self.volume_id, self.ids, self.map = volume_id, ids, map
        self.committed, self.pending, self.redo = committed, pending, redo
        self.mark, self.mark_time = mark, mark_time

    def fields(self) -> dict[str, Any]:
        """As the state file has it."""
        return {
            **vars(self),
            "committed": self.committed and self.committed._asdict(),
            "pending": self.pending and dict(vars(self.pending)),
            "redo": self.redo and self.redo._asdict(),
        }

    @classmethod
    def parsed(cls, fields: dict[str, Any]) -> Self:
        """Undo ``fields``. Raises TypeError or AttributeError for what is of another shape."""
        for key, kind in (("committed", Committed), ("pending", Pending), ("redo", Redo)):
            if fields.get(key) is not None:
                fields[key] = kind(**fields[key])
                check_fields(fields[key])
        progress = cls(**fields)
        check_fields(progress)
        return progress

    def pending_as(self, session: bytes) -> Pending | None:
        """The pending session if it is that one."""
        found = self.pending
        return found if found is not None and found.session == session.hex() else None
