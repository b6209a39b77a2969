# SPDX-License-Identifier: GPL-2.0-or-later
"""What rules may remove at once: so that nobody who can only add sessions, and no clock that is
wrong, has the good ones removed by the rules of whoever prunes.

Three things hold, each unless the caller says otherwise:

- a session that is newer than ``age`` stays;
- a session that the store got within ``age`` pushes no other out: rules are asked a second time,
  about those alone that the store has had for longer, and what they keep stays, too;
- of no volume all sessions of more than ``share`` percent of its days go at once; if they would,
  the volume is left as it is, and a person has to say that it is meant.

Days are counted, not sessions, because thinning to one a day takes most sessions and no day. They
are counted twice: by the times that sessions claim, and by the days on which the store got their
files, which nobody can set who only adds to an object store. A thousand sessions stored today are
one day by the second count, whatever days they claim.
"""

import re
import time
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from backup_vm.jobs.keep_rules import DAY, parse_duration
from backup_vm.quantities import setting

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive
    from backup_vm.archive.sessions import Session

# Half: rules that are applied after months of backups remove about so much, once. More at once is
# more often a mistake than a wish.
SHARE = 50
"""Percent of a volume's days that may go at once."""
# A weekend: whoever adds junk has to be unnoticed for so long before it pushes anything out.
AGE = 3 * DAY
"""Seconds during which a new session stays, and pushes none out."""


class Guard(NamedTuple):
    """``share`` in percent, ``age`` in seconds; None: SHARE and AGE."""

    share: int | None = None
    age: int | None = None

    def over(self, other: "Guard") -> "Guard":
        """This one, and where it says nothing the other."""
        return Guard(
            other.share if self.share is None else self.share,
            other.age if self.age is None else self.age,
        )

    @property
    def seconds(self) -> int:
        """The age that counts."""
        return AGE if self.age is None else self.age

    @property
    def percent(self) -> int:
        """The share that counts."""
        return SHARE if self.share is None else self.share


class Watch(NamedTuple):
    """A guard at work on an archive at a moment, ``now`` in Unix seconds."""

    guard: Guard
    archive: "Archive"
    now: float

    @classmethod
    def over(cls, archive: "Archive", guard: Guard, now: float | None = None) -> "Watch":
        """Take what time it is: our clock's, or the store's if that is earlier. The lease of the
        run itself, which was written just now, tells the store's.
        """
        ours = time.time() if now is None else now
        stores = archive.storage.locks().list().values() if archive.writing else ()
        return cls(guard, archive, min(ours, max(stores, default=ours)))

    def new(self, session: "Session") -> bool:
        """Whether a session is too new to be removed."""
        return bool(self.guard.seconds) and session.clear.time > self.now - self.guard.seconds

    def settled(self, sessions: Sequence["Session"]) -> list["Session"]:
        """Of the sessions of a volume those that the store has had for so long that they may push
        others out.

        A session whose file was written again, by a prune that merged another into it, counts from
        then on.
        """
        if not self.guard.seconds or not sessions:
            return list(sessions)
        written = self._written(sessions)
        upto = self.now - self.guard.seconds
        return [one for one in sessions if max(written[one.file], one.clear.time) <= upto]

    def too_much(
        self, name: str, sessions: Sequence["Session"], gone: Collection[str]
    ) -> str | None:
        """Why the sessions of a volume whose files are ``gone`` may not all go at once, in one
        sentence; None if they may.
        """
        if not gone or self.guard.percent >= 100:
            return None
        written = self._written(sessions)
        for what, at in (
            ("days", {one.file: one.clear.time for one in sessions}),
            ("days of storing", written),
        ):
            every = _days(at[one.file] for one in sessions)
            kept = _days(at[one.file] for one in sessions if one.file not in gone)
            lost = len(every - kept)
            if lost * 100 > self.guard.percent * len(every):
                return (
                    f"{name} is left as it is: all sessions of {lost} of its {len(every)} {what}"
                    f" would go, more than {self.guard.percent}% at once; if no stranger added"
                    " sessions and the clocks are right, give: --max-removed"
                    f" {min(100, -(-lost * 100 // len(every)))}%"
                )
        return None

    def _written(self, sessions: Sequence["Session"]) -> dict[str, float]:
        """When the store got each session's file; one that it does not tell of was written now."""
        folders = {one.file.rpartition("/")[0] for one in sessions}
        found: dict[str, float] = {}
        for folder in folders:
            found |= self.archive.storage.written(folder)
        return {one.file: found.get(one.file, self.now) for one in sessions}


def _days(times: Iterable[float]) -> set[int]:
    return {int(at // DAY) for at in times}


def parse_percent(text: str) -> int:
    """Percent of ``50%``; raise ValueError."""
    if not re.fullmatch(r"[0-9]{1,3}%", text) or int(text[:-1]) > 100:
        raise ValueError(f"{text!r} is not a share such as 50%")
    return int(text[:-1])


def taken(raw: dict[str, Any]) -> tuple[dict[str, Any], Guard]:
    """A table of the settings without ``max_removed`` and ``min_age``, and what these say; raise
    ValueError.
    """
    raw, found = dict(raw), dict[str, int]()
    for key, parse in (("max_removed", parse_percent), ("min_age", parse_duration)):
        if key in raw:
            value = raw.pop(key)
            if not isinstance(value, str):
                raise ValueError(f"{key} must be a text")
            found[key] = setting(key, parse, value)
    return raw, Guard(found.get("max_removed"), found.get("min_age"))
