# SPDX-License-Identifier: GPL-2.0-or-later
"""Chunks that packs hold, in the order of their ids, against what sessions list of them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from wire.chunks import ID_SIZE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Numbers = NDArray[np.int64]


class Part(NamedTuple):
    """Chunks in the order of their ids, each once, and what is known of them.

    ``rows``, to be read once: id, pack number, offset and length; ``listed``: of each whether a
    file lists it; ``twice``: the same of further copies; ``lacking``: how many ids that are not
    among them each file lists, by its number.
    """

    rows: Iterable[tuple[bytes, int, int, int]]
    listed: list[bool]
    twice: list[tuple[bytes, int, int, int]]
    lacking: dict[int, int]


def column(rows: "Bytes", at: int, kind: str) -> "Numbers":
    """Numbers of this kind at an offset of each row: int64[n]."""
    import numpy as np

    width = np.dtype(kind).itemsize
    return np.ascontiguousarray(rows[:, at : at + width]).view(kind).ravel().astype(np.int64)


def _prefixes(rows: "Bytes") -> "NDArray[np.uint64]":
    """First eight bytes of each id, so that their order is that of the ids."""
    import numpy as np

    return np.ascontiguousarray(rows[:, :8]).view(">u8").ravel().astype(np.uint64)


def _texts(rows: "Bytes") -> "NDArray[np.bytes_]":
    """The ids, to be compared whole. Zeros at the end do not count then, and need not, for all are
    of one length.
    """
    import numpy as np

    return np.ascontiguousarray(rows[:, :ID_SIZE]).view(f"S{ID_SIZE}").ravel()


def joined(packed: "Bytes", listed: "Bytes") -> Part:
    """What packs hold, and what files list, of some ids: rows of bytes as in gathering.py, in the
    order in which they were found.
    """
    import numpy as np

    prefixes = _prefixes(packed)
    order = np.argsort(prefixes, kind="stable")
    known, whole = prefixes[order], False
    if (known[1:] == known[:-1]).any():
        # Several copies of a chunk, as a rule. Whoever can write packs can also make ids that begin
        # alike, which must not be taken for one another.
        order = np.argsort(_texts(packed), kind="stable")
        whole = True
    packed = packed[order]
    first = np.ones(len(packed), np.bool_)
    if whole:
        first[1:] = (packed[1:, :ID_SIZE] != packed[:-1, :ID_SIZE]).any(axis=1)
    once = packed[first]
    used = np.zeros(len(once), np.bool_)
    missing = listed
    if len(once) and len(listed):
        if whole:
            at = np.searchsorted(_texts(once), _texts(listed))
        else:
            at = np.searchsorted(known, _prefixes(listed))
        at = np.minimum(at, len(once) - 1)
        found = (once[at, :ID_SIZE] == listed[:, :ID_SIZE]).all(axis=1)
        used[at[found]] = True
        missing = listed[~found]
    files, counts = np.unique(column(missing, ID_SIZE, "<u4"), return_counts=True)
    return Part(
        _tuples(once),
        used.tolist(),
        list(_tuples(packed[~first])),
        dict(zip(files.tolist(), counts.tolist(), strict=True)),
    )


def _tuples(rows: "Bytes") -> Iterable[tuple[bytes, int, int, int]]:
    raw = rows[:, :ID_SIZE].tobytes()
    return zip(
        (raw[at : at + ID_SIZE] for at in range(0, len(raw), ID_SIZE)),
        column(rows, ID_SIZE, "<u4").tolist(),
        column(rows, ID_SIZE + 8, "<i8").tolist(),
        column(rows, ID_SIZE + 4, "<u4").tolist(),
        strict=True,
    )
