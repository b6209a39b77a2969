# SPDX-License-Identifier: GPL-2.0-or-later
"""What sessions refer to. Only this, never the catalog, decides what may be freed."""

import hashlib
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from backup_vm.archive import naming, sessions
from backup_vm.archive.damage import damage
from backup_vm.archive.format import DIGEST_SIZE, SESSION_HEAD_SIZE
from backup_vm.archive.partial import SUFFIX, UNFINISHED, listed_ids
from backup_vm.errors import DamagedError
from wire.chunks import ID_SIZE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from backup_vm.archive.archive import Archive
    from backup_vm.archive.columns import Ids

    Prefixes = NDArray[np.uint64]
    Indexes = NDArray[np.int64]

_BLOCK = (1 << 15) * ID_SIZE
_PART = (1 << 14) * ID_SIZE


def files(archive: "Archive") -> list[str]:
    """Names of all files that refer to chunks: sessions, partial ones of this machine, unfinished
    ones of any.
    """
    storage = archive.storage
    return [
        *archive.session_files(),
        *filter(naming.is_partial, storage.workspace.names("volumes", SUFFIX)),
        *filter(naming.is_unfinished, storage.names("volumes", UNFINISHED)),
    ]


def parts(file: IO[bytes] | None) -> Iterator[list[bytes]]:
    """The ids that were written to a file, some at a time, and in each part once; None has none."""
    if file is None:
        return
    file.seek(0)
    while raw := file.read(_PART):
        yield list({raw[at : at + ID_SIZE] for at in range(0, len(raw), ID_SIZE)})


def ids(archive: "Archive", name: str) -> "Iterator[Ids]":
    """The chunk ids in one of these files, in slices: uint8[n, 32]. Raises DamagedError, of a
    session's head and size only.
    """
    if naming.is_session(name):
        session = sessions.load(archive.storage, name)
        for _, column in sessions.columns(archive.storage, session).slices():
            yield column
    else:
        yield from _incomplete(archive, name)


def proven_ids(archive: "Archive", name: str) -> "Iterator[Ids]":
    """As ``ids``, and the file is compared with its digest on the way, in one reading. Raises
    DamagedError at its end, too.
    """
    if not naming.is_session(name):
        yield from _incomplete(archive, name)
        return
    import numpy as np

    session = sessions.load(archive.storage, name)
    digest, column = hashlib.blake2b(digest_size=DIGEST_SIZE), session.count * ID_SIZE
    with damage(archive.storage, name), archive.storage.open(name) as file:
        left = SESSION_HEAD_SIZE + 8 * session.count
        while left and (block := file.read(min(left, _BLOCK))):
            digest.update(block)
            left -= len(block)
        while column and (block := file.read(min(column, _BLOCK))):
            digest.update(block)
            column -= len(block)
            yield np.frombuffer(block[: len(block) // ID_SIZE * ID_SIZE], np.uint8).reshape(
                -1, ID_SIZE
            )
        sound = not left and not column and file.read(DIGEST_SIZE) == digest.digest()
    if not sound:
        raise DamagedError(
            f"{archive.storage.describe(name)} is damaged: its checksum is wrong",
            "run: sparsebak scrub",
        )


def _incomplete(archive: "Archive", name: str) -> "Iterator[Ids]":
    import numpy as np

    for raw in listed_ids(archive.storage, name):
        yield np.frombuffer(raw, np.uint8).reshape(-1, ID_SIZE)


def prefixes(column: "Ids") -> "Prefixes":
    """First eight bytes of ids as a number: uint64[n], in the order of the ids. Ids are keyed
    hashes, so that of equal prefixes all but none belong to ids that differ; where one does, a
    chunk is kept that could go, which is the safe side.
    """
    import numpy as np

    return np.ascontiguousarray(column[:, :8]).view(">u8").ravel().astype(np.uint64)


def positions(known: "Prefixes", column: "Ids") -> "Indexes":
    """Of each id where its prefix stands in ``known``, which rises: int64[n]; ``len(known)`` of
    those that are not there.
    """
    import numpy as np

    wanted = prefixes(column)
    if not len(known):
        return np.zeros(len(wanted), np.int64)
    at = np.searchsorted(known, wanted)
    found = known[np.minimum(at, len(known) - 1)] == wanted
    return np.where(found, at, len(known))
