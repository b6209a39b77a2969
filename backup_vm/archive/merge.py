# SPDX-License-Identifier: GPL-2.0-or-later
"""Several sessions of a volume as one: what is left of their entries, and what the later ones have
superseded.

Worked on in windows of chunk numbers, so that memory does not grow with the volume or with the
number of sessions.
"""

from collections.abc import Collection, Iterator
from contextlib import closing
from typing import IO, TYPE_CHECKING

from backup_vm.archive import sessions
from backup_vm.archive.columns import columns_of
from backup_vm.archive.image import chain
from backup_vm.archive.sessions import Session
from backup_vm.archive.storage import Storage
from wire.chunks import ID_SIZE

if TYPE_CHECKING:
    from backup_vm.archive.columns import Ids, Numbers

WINDOW = 1 << 16
"""Chunk numbers looked at together."""
_BLOCK = 1 << 20


def groups(
    series: list[Session], gone: Collection[str]
) -> Iterator[tuple[list[Session], Session | None]]:
    """How the sessions of a volume that go (file names) are folded into those that stay.

    For each that stays and builds on some that go: these, oldest first, and it. At last those that
    none builds on which stays, and None.
    """
    going = {session.clear.session: session for session in series if session.file in gone}
    folded: set[str] = set()
    for session in series:
        run = [] if session.file in gone else chain(going.values(), session)[0][:-1]
        if run:
            folded.update(one.file for one in run)
            yield run, session
    left = [session for session in going.values() if session.file not in folded]
    if left:
        yield left, None


class Merge:
    """The entries of sessions each of which builds on the one before; the last one stays, with its
    image.
    """

    def __init__(self, storage: Storage, series: list[Session]) -> None:
        self._storage, self._series = storage, series
        self._columns = columns_of(storage, series)

    def windows(self) -> "Iterator[tuple[Numbers, Ids, list[Ids]]]":
        """Of each window: chunk numbers and ids that are left, and the ids that were superseded."""
        import numpy as np

        for first in self._firsts():
            # What the sessions so far say of chunk ``first + i``: its id, if ``held[i]``.
            ids = np.zeros((WINDOW, ID_SIZE), np.uint8)  # uint8[WINDOW, 32]
            held = np.zeros(WINDOW, np.bool_)  # bool[WINDOW]
            superseded: list[Ids] = []  # uint8[n, 32] each
            for session, columns in zip(self._series, self._columns, strict=True):
                # A session inherits the first chunks only: the volume shrank, or it is a full one.
                # What earlier ones say beyond that is gone.
                if session.inherit < first + WINDOW:
                    beyond = held.copy()  # bool[WINDOW]
                    beyond[: max(session.inherit - first, 0)] = False
                    superseded.append(ids[beyond])
                    held &= ~beyond
                for numbers, new in columns.between(first, first + WINDOW):
                    where = numbers - first  # int64[n], rising; ``new``: uint8[n, 32]
                    replaced = where[held[where]]
                    superseded.append(ids[replaced])
                    ids[where], held[where] = new, True
            left = np.flatnonzero(held)  # int64[n]
            yield (left + first).astype("<u8"), ids[left], superseded

    def _firsts(self) -> Iterator[int]:
        """The first chunk number of each window in which anything is: a volume may be large, and
        its sessions small.
        """
        at = 0
        while (
            low := min(
                (n for one in self._columns if (n := one.next(at)) is not None), default=None
            )
        ) is not None:
            yield low // WINDOW * WINDOW
            at = (low // WINDOW + 1) * WINDOW

    def store(self, superseded: IO[bytes]) -> Session:
        """Store the last session with all that is left in it; ids that were superseded are appended
        to ``superseded``.
        """
        last, count = self._series[-1], 0
        scratch = self._storage.workspace.scratch
        with closing(scratch()) as numbers, closing(scratch()) as ids:
            for number_window, id_window, gone in self.windows():
                numbers.write(number_window.tobytes())
                ids.write(id_window.tobytes())
                count += len(number_window)
                for part in gone:
                    superseded.write(part.tobytes())
            inherit = min(session.inherit for session in self._series)
            return sessions.write(
                self._storage,
                last.record,
                self._series[0].base,
                inherit,
                count,
                blocks(numbers),
                blocks(ids),
            )


def blocks(file: IO[bytes]) -> Iterator[bytes]:
    """A file from its beginning, in blocks."""
    file.seek(0)
    while block := file.read(_BLOCK):
        yield block
