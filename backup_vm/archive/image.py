# SPDX-License-Identifier: GPL-2.0-or-later
"""The chunk ids of a volume's image at a session: the newest entry for each chunk number. No Python
loop over chunks.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from backup_vm.archive import sessions
from backup_vm.archive.columns import columns_of
from backup_vm.archive.sessions import Session
from backup_vm.archive.storage import Storage
from wire.chunks import ID_SIZE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from backup_vm.archive.archive import Archive
    from backup_vm.archive.columns import Ids

Result = TypeVar("Result")
WINDOW = 32768
"""Chunks handed out together; a whole number of pages of 1,024."""
_SPAN = 8 * WINDOW
"""Chunks put together at once: in a long series most sessions have little in a window, and each
costs the same.
"""


def chain(series: Iterable[Session], session: Session) -> tuple[list[Session], bytes]:
    """The sessions that an image is made of, the one that builds on nothing first.

    Also the id of the session which is not in the series although the first one builds on it;
    NO_BASE if all are there. What a session builds on is looked up by id, so that others that have
    come to be between do not matter.
    """
    older = {
        one.clear.session: one for one in series if one.clear.sequence < session.clear.sequence
    }
    found = [session]
    while (base := older.get(found[0].base)) and base.clear.sequence < found[0].clear.sequence:
        found.insert(0, base)
    return found, found[0].base


class Image:
    """The image that a chain of sessions of one volume, each building on the one before, adds up
    to.

    With an archive that is only read the chain is followed: another machine may merge sessions of
    it meanwhile, and the image stays what it is. Methods raise RemovedError when it removed this
    one.
    """

    def __init__(
        self, storage: Storage, chain: list[Session], archive: "Archive | None" = None
    ) -> None:
        self._storage, self._archive = storage, archive
        self._look = archive.looking.count if archive else 0
        self._use(chain)

    def _use(self, chain: list[Session]) -> None:
        self.sessions = chain
        self._columns = columns_of(self._storage, chain)
        self.session = chain[-1]
        self.chunks = self.session.chunks

    def _follow(self) -> None:
        """Take the chain as it is now, if the archive was looked at again. Raises DamagedError,
        RemovedError.
        """
        if self._archive is not None and self._look != self._archive.looking.count:
            self._look = self._archive.looking.count
            self._use(self._archive.chain([], self.session))

    def _steady(self, read: "Callable[[], Result]") -> "Result":
        def following() -> "Result":
            self._follow()
            return read()

        return read() if self._archive is None else self._archive.looking.steady(following)

    def check(self) -> None:
        """Compare all session files with their digests, or raise DamagedError."""

        def check() -> None:
            for session in self.sessions:
                sessions.check(self._storage, session)

        self._steady(check)

    def ids(self, first: int, end: int) -> "Ids":
        """Ids of the chunks from ``first`` up to ``end``: uint8[end - first, 32].

        Zeros where nothing is stored. Raises DamagedError.
        """
        return self._steady(lambda: self._ids(first, end))

    def _ids(self, first: int, end: int) -> "Ids":
        import numpy as np

        window = np.zeros((end - first, ID_SIZE), np.uint8)
        for session, one in zip(self.sessions, self._columns, strict=True):
            if session.inherit < end:
                window[max(session.inherit - first, 0) :] = 0
            for numbers, ids in one.between(first, end):
                window[numbers - first] = ids
        return window

    def arrays(self) -> "Iterator[tuple[int, Ids]]":
        """First chunk number and ids of each window of the image, in order, as arrays."""
        for start in range(0, self.chunks, _SPAN):
            span = self.ids(start, min(start + _SPAN, self.chunks))
            for at in range(0, len(span), WINDOW):
                yield start + at, span[at : at + WINDOW]

    def windows(self) -> Iterator[tuple[int, list[bytes]]]:
        """First chunk number and ids of each window of the image, in order."""
        for first, ids in self.arrays():
            yield first, split(ids)


def runs(masks: "Iterable[tuple[int, NDArray[np.bool_]]]") -> Iterator[tuple[int, int]]:
    """Runs of true values (first, end), joined where they touch, of masks that follow each other
    with their first numbers.
    """
    import numpy as np

    begin = end = 0
    for first, mask in masks:
        edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
        for start, stop in (edges.reshape(-1, 2) + first).tolist():
            if start != end and begin < end:
                yield begin, end
            begin, end = (begin if start == end else start), stop
    if begin < end:
        yield begin, end


def split(ids: "Ids") -> list[bytes]:
    """Rows of an id column as 32-byte strings."""
    raw = ids.tobytes()
    return [raw[at : at + ID_SIZE] for at in range(0, len(raw), ID_SIZE)]
