"""The chunk ids of a volume's image at a session: the newest entry for each chunk number. No Python
loop over chunks.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from backup_vm.archive.columns import columns_of
from backup_vm.archive.sessions import Session
from backup_vm.archive.storage import Storage
from wire.chunks import ID_SIZE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from backup_vm.archive.columns import Ids

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
    come to lie between do not matter.
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
    """

    def __init__(self, storage: Storage, chain: list[Session]) -> None:
        self.sessions = chain
        self._columns = columns_of(storage, chain)
        self.session = chain[-1]
        self.chunks = self.session.chunks

    def ids(self, first: int, end: int) -> "Ids":
        """Ids of the chunks from ``first`` up to ``end``: uint8[end - first, 32].

        Zeros where nothing is stored. Raises DamagedError.
        """
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
