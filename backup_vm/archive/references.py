"""What sessions refer to. Only this, never the catalog, decides what may be freed."""

from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from backup_vm.archive import sessions
from backup_vm.archive.image import split
from wire.sealing import ID_SIZE, ZERO_ID

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from backup_vm.archive.archive import Archive
    from backup_vm.archive.columns import Ids

    Keys = NDArray[np.uint64]

_SLAB = 1 << 18
"""Ids looked for together: about 25 MiB of memory."""


def columns(archive: "Archive") -> "Iterator[Ids]":
    """Every chunk id that a session or a partial session refers to, in slices: uint8[n, 32]. Raises DamagedError."""
    import numpy as np

    storage = archive.storage
    for name in archive.session_files():
        for _, ids in sessions.columns(storage, sessions.load(storage, name)).slices():
            yield ids
    for one in archive.partials():
        for raw in one.ids():
            yield np.frombuffer(raw, np.uint8).reshape(-1, ID_SIZE)
        one.close()


def ids(archive: "Archive") -> Iterator[list[bytes]]:
    """The same as lists."""
    for column in columns(archive):
        yield split(column)


def key(column: "Ids") -> "Keys":
    """First eight bytes of ids as a number: uint64[n]. Ids are keyed hashes, so that equal keys are all but equal ids."""
    import numpy as np

    return np.ascontiguousarray(column[:, :8]).view("<u8").ravel()


def referenced(archive: "Archive", wanted: set[bytes]) -> set[bytes]:
    """Those of the ids that a session or a partial session refers to."""
    import numpy as np

    if not wanted:
        return set()
    keys = np.sort(key(np.frombuffer(b"".join(wanted), np.uint8).reshape(-1, ID_SIZE)))
    found: set[bytes] = set()
    for column in columns(archive):
        these = key(column)
        alike = keys[np.minimum(np.searchsorted(keys, these), len(keys) - 1)] == these
        found.update(wanted.intersection(split(column[alike])))
        if len(found) == len(wanted):
            break
    return found


def unreferenced(archive: "Archive", candidates: IO[bytes]) -> Iterator[list[bytes]]:
    """Those of the ids in a file, one after another, that nothing refers to, in lists of bounded length."""
    candidates.seek(0)
    while raw := candidates.read(_SLAB * ID_SIZE):
        wanted = {raw[at : at + ID_SIZE] for at in range(0, len(raw), ID_SIZE)} - {ZERO_ID}
        yield list(wanted - referenced(archive, wanted))
