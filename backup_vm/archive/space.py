# SPDX-License-Identifier: GPL-2.0-or-later
"""Which volume and which session takes up how much, and what would come back if sessions were
pruned.

Chunks are known here by the first eight bytes of their ids, so that an account takes 16 bytes of
memory for each chunk, and 4 for each entry of a session; two that share these would be counted as
one, which is as likely as a keyed hash of 64 bits is to collide.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Collection, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from backup_vm.archive import naming, sessions
from backup_vm.archive.archive import Archive
from backup_vm.archive.merge import Merge, groups
from backup_vm.archive.references import positions, prefixes
from backup_vm.archive.sessions import Session
from backup_vm.errors import DamagedError
from wire.chunks import ID_SIZE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from backup_vm.archive.columns import Numbers

    Indexes = NDArray[np.signedinteger[Any]]

LARGEST = 3_000_000
"""Entries of session files up to which an account is made without being asked for: a few seconds.
"""
_LONGEST = (1 << 32) - 1
"""Bytes of a chunk that are counted: those that are written have a few million at most."""


class Use(NamedTuple):
    """What a volume takes up. ``own``: sealed bytes that only it refers to, ``shared``: those that
    others refer to too.

    ``plain``: bytes of its distinct chunks before compression; ``listed``: bytes of all chunks that
    its sessions list.
    """

    own: int
    shared: int
    plain: int
    listed: int

    @property
    def compression(self) -> float:
        """Plain bytes for each byte stored."""
        return self.plain / (self.own + self.shared) if self.own + self.shared else 1.0

    @property
    def deduplication(self) -> float:
        """Chunks listed for each chunk stored."""
        return self.listed / self.plain if self.plain else 1.0


def entries(volumes: Mapping[str, list[Session]]) -> int:
    """How many entries an account of these would look at."""
    return sum(session.count for series in volumes.values() for session in series)


class Account:
    """An account of all sessions, as they are when it is made. ``volumes``: sessions by volume id,
    oldest first.
    """

    def __init__(self, archive: Archive, volumes: Mapping[str, list[Session]]) -> None:
        import numpy as np

        self._storage, self._volumes = archive.storage, volumes
        self._chunk_size = archive.parameters.chunk_size
        chunks, end = archive.catalog.count()[0], 0
        self._prefixes, self._lengths = np.empty(chunks, np.uint64), np.empty(chunks, np.uint32)
        for ids, sizes in archive.catalog.lengths():  # in the order of ids, so that prefixes rise
            start, end = end, end + len(sizes)
            if end > chunks:
                raise sqlite3.DatabaseError("it has more chunks than it counts")
            self._prefixes[start:end] = prefixes(np.frombuffer(ids, np.uint8).reshape(-1, ID_SIZE))
            self._lengths[start:end] = np.clip(sizes, 0, _LONGEST)
        self._prefixes, self._lengths = self._prefixes[:end], self._lengths[:end]
        self._uses = np.zeros(end + 1, np.int32)
        # Where a chunk stands in the account, for each entry: half of the memory, where that does.
        self._none: Indexes = np.empty(0, np.int32 if end < 1 << 31 else np.int64)
        self._by_session: dict[str, Indexes] = {}
        self._uncounted: set[str] = set()
        self._places: dict[str, int] = {}
        self._builders: dict[tuple[str, bytes], list[int]] = defaultdict(list)
        for volume, series in volumes.items():
            for place, session in enumerate(series):
                self._places[session.file] = place
                self._builders[volume, session.base].append(place)
                at = self._by_session[session.file] = self._entries(archive, session)
                np.add.at(self._uses, at, 1)

    def _entries(self, archive: Archive, session: Session) -> "Indexes":
        """Where the chunks of a session stand in the account; none of one that cannot be read."""
        import numpy as np

        found: Indexes = np.empty(session.count, self._none.dtype)
        end = 0
        try:
            for _, ids in sessions.columns(self._storage, session).slices():
                at, end = end, end + len(ids)
                found[at:end] = self._indexes(ids)
        except DamagedError as error:
            archive.damaged[session.file] = error
            self._uncounted.add(session.file)
            return self._none
        return found

    def _indexes(self, ids: "NDArray[np.uint8]") -> "Indexes":
        """Where the chunks of an id column stand in the account; zeros and what is missing stand at
        the end.
        """
        return positions(self._prefixes, ids)

    def _sizes(self, at: "Indexes") -> int:
        return int(self._lengths[at[at < len(self._prefixes)]].sum(dtype="int64"))

    def knows(self, volume: str) -> bool:
        """Whether all sessions of a volume could be read when they were counted."""
        return self._uncounted.isdisjoint(session.file for session in self._volumes[volume])

    def volume(self, volume: str) -> Use:
        """What one volume takes up, as far as its sessions could be read."""
        import numpy as np

        parts = [self._by_session[session.file] for session in self._volumes[volume]]
        listed = np.concatenate([self._none, *parts])
        listed = listed[listed < len(self._prefixes)]
        mine, counts = np.unique(listed, return_counts=True)
        own = self._sizes(mine[self._uses[mine] == counts])
        whole = self._sizes(mine)
        return Use(own, whole - own, len(mine) * self._chunk_size, len(listed) * self._chunk_size)

    def growth(self) -> list[tuple[int, int]]:
        """For each time of a session (Unix seconds, rising) the sealed bytes of all that sessions
        up to it refer to.
        """
        import numpy as np

        found: dict[int, int] = {}
        held, total = np.zeros(len(self._prefixes) + 1, np.bool_), 0
        held[-1] = True
        every = [session for series in self._volumes.values() for session in series]
        for session in sorted(every, key=lambda session: session.clear.time):
            at = np.unique(self._by_session[session.file])
            new = at[~held[at]]
            held[new] = True
            total += self._sizes(new)
            found[session.clear.time] = total
        return sorted(found.items())

    def comes_back(self, doomed: Collection[str]) -> int:
        """Bytes that would come back if the sessions (file names) were pruned."""
        import numpy as np

        dropped = [self._none]
        for volume in {naming.volume_of(file) for file in doomed}:
            for run, successor in groups(self._around(volume, doomed), doomed):
                if successor is not None:
                    dropped += self._superseded([*run, successor])
                else:
                    dropped += [self._by_session[session.file] for session in run]
        at, counts = np.unique(np.concatenate(dropped), return_counts=True)
        return self._sizes(at[self._uses[at] == counts])

    def _around(self, volume: str, doomed: Collection[str]) -> list[Session]:
        """Those of a volume that go, and those that build on them: all that matters to what comes
        back.
        """
        series = self._volumes[volume]
        going = [self._places[file] for file in doomed if naming.volume_of(file) == volume]
        builders = (self._builders.get((volume, series[at].clear.session), ()) for at in going)
        return [series[at] for at in sorted({*going, *chain(*builders)})]

    def _superseded(self, run: list[Session]) -> "list[Indexes]":
        import numpy as np

        # What could not be read then may be readable now: an error of a disk may pass.
        if not self._uncounted.isdisjoint(session.file for session in run):
            return []
        try:
            if len(run) > 2:
                windows = Merge(self._storage, run).windows()
                return [self._indexes(part) for *_, parts in windows for part in parts]
            old, new = (self._numbers(session) for session in run)
        except DamagedError:  # since then; whoever reads it next notes it
            return []
        gone = np.isin(old, new, assume_unique=True) | (old >= run[1].inherit)
        return [self._by_session[run[0].file][gone]]

    def _numbers(self, session: Session) -> "Numbers":
        import numpy as np

        slices = sessions.columns(self._storage, session).slices()
        return np.concatenate([np.empty(0, np.int64), *(numbers for numbers, _ in slices)])
