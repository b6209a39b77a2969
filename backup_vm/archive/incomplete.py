# SPDX-License-Identifier: GPL-2.0-or-later
"""Which sessions cannot be had whole, as far as is known without reading packs: chunks of their
images are missing or damaged, or a session that they build on is.

The catalog knows which session files list such chunks, or are damaged (``spoilt``). A session that
builds on one of these inherits what it lacks, except where it has stored something else at those
places.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from backup_vm.archive import derive, sessions
from backup_vm.archive.archive import Archive
from backup_vm.archive.image import split
from backup_vm.archive.sessions import Session
from backup_vm.errors import DamagedError
from wire.chunks import ZERO_ID

if TYPE_CHECKING:
    from backup_vm.archive.columns import Numbers

_NAMED = 3
"""Sessions that a line names."""


def incomplete(archive: Archive, volumes: Mapping[str, Sequence[Session]]) -> dict[str, str]:
    """Of these sessions (by volume id, all of each volume, oldest first) those that cannot be had
    whole: the reason by session file. A backup that stored again what was missing has mended them.
    """
    found = archive.cut_off({volume: list(series) for volume, series in volumes.items()})
    spoilt = archive.catalog.spoilt()
    for series in volumes.values():
        if not spoilt.isdisjoint(session.file for session in series):
            found |= _of_series(archive, series, spoilt, found)
    return found


def _of_series(
    archive: Archive, series: Sequence[Session], spoilt: set[str], cut_off: Mapping[str, str]
) -> dict[str, str]:
    found: dict[str, str] = {}
    lacking: dict[bytes, Numbers] = {}  # numbers of the chunks that images lack, by session id
    broken: dict[bytes, str] = {}  # names of sessions that do not tell which chunks they list
    for session in series:
        own, base = session.clear.session, lacking.get(session.base)
        if session.file in cut_off:
            continue
        if session.base in broken and session.inherit:
            broken[own] = broken[session.base]
            found[session.file] = f"it builds on {broken[own]}, which cannot be read"
            continue
        if session.file not in spoilt and base is None:
            continue
        try:
            numbers = _lacking(archive, session, session.file in spoilt, base)
        except (DamagedError, OSError) as error:
            broken[own], found[session.file] = session.name, str(error)
            continue
        if len(numbers):
            lacking[own] = numbers
            found[session.file] = f"{len(numbers)} of its chunks are missing or damaged"
        else:  # what proves its image authentic may be damaged
            found |= derive.damaged(archive, [session.file])
    return found


def spoilt_volumes(archive: Archive) -> list[str]:
    """A line for each volume, by its id, that has sessions which are not whole."""

    def lines() -> list[str]:
        volumes = archive.sessions()
        found = incomplete(archive, volumes)
        return [one for id, some in volumes.items() for one in text(f"volume {id}", some, found)]

    return archive.looking.steady(lines, frozenset)


def text(name: str, series: Iterable[Session], found: Mapping[str, str]) -> list[str]:
    """A line about those sessions of a volume, called ``name``, that are among those ``found``;
    nothing where there are none.
    """
    mine = [session for session in series if session.file in found]
    if not mine:
        return []
    names = ", ".join(session.name for session in mine[:_NAMED])
    more = f" and {len(mine) - _NAMED} more" if len(mine) > _NAMED else ""
    return [f"{name}: spoilt: {names}{more} ({found[mine[0].file]})"]


def _lacking(archive: Archive, session: Session, spoilt: bool, base: "Numbers | None") -> "Numbers":
    """Numbers of the chunks that its image lacks. ``base``: those that what it builds on lacks.
    Raises DamagedError.
    """
    import numpy as np

    none = np.empty(0, np.int64)
    inherited = none if base is None else base[base < session.inherit]
    own = [none]
    for numbers, ids in sessions.columns(archive.storage, session).slices():
        inherited = inherited[~np.isin(inherited, numbers)]
        if spoilt:
            listed = split(ids)
            there = archive.catalog.places(set(listed) - {ZERO_ID})
            own.append(numbers[[one != ZERO_ID and one not in there for one in listed]])
    return np.concatenate([*own, inherited])
