"""Session files: a record from dom0 and the chunks that changed, as two columns: chunk numbers (rising) and chunk ids.

An image at a session is, for each chunk number, the newest entry up to that session. ``inherit`` cuts that off: entries
of earlier sessions at or beyond it do not count (a volume that was shrunk and grown again; 0 for a full session).
"""

import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backup_vm.archive.format import (
    DIGEST_SIZE,
    NO_BASE,
    SESSION_ENTRY_SIZE,
    SESSION_HEAD,
    SESSION_HEAD_SIZE,
)
from backup_vm.archive.storage import Storage
from backup_vm.errors import DamagedError
from wire.names import session_name
from wire.records import Clear, read_clear
from wire.sealing import ID_SIZE, NotAuthentic
from wire.tree import chunk_count

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.uint64]
    Ids = NDArray[np.uint8]

SUFFIX = ".session"
SLICE = 1 << 16
"""Rows of columns looked at together, unless told otherwise."""
_KEPT = 8
"""Windows after which memory that session files take is let go of."""


@dataclass(frozen=True)
class Session:
    """A stored session. ``file`` is its name in the archive, ``clear`` what its record says in clear."""

    file: str
    clear: Clear
    record: bytes
    base: bytes
    """Id of the session that it builds on; NO_BASE if ``inherit`` is 0."""
    inherit: int
    count: int

    @property
    def full(self) -> bool:
        """Whether it builds on no other."""
        return self.base == NO_BASE

    @property
    def name(self) -> str:
        """Its time in UTC: ``20261123-061500``."""
        return session_name(self.clear.time)

    @property
    def volume(self) -> str:
        """Id of its volume in hexadecimal."""
        return self.clear.volume_id.hex()

    @property
    def chunks(self) -> int:
        """Chunks of the volume at this session."""
        return chunk_count(self.clear.size, self.clear.chunk_size)


def file_name(clear: Clear) -> str:
    """Name in the archive: ``volumes/<volume id>/<sequence>-<session id>.session``."""
    return f"volumes/{clear.volume_id.hex()}/{clear.sequence:010d}-{clear.session.hex()}{SUFFIX}"


def load(storage: Storage, name: str) -> Session:
    """Read the head of a session file, or raise DamagedError."""
    path = storage.describe(name)
    with open(storage.local(name), "rb") as file:
        raw = file.read(SESSION_HEAD_SIZE)
    try:
        head = SESSION_HEAD.parse(raw)
        clear = read_clear(head["record"])
    except (ValueError, NotAuthentic) as error:
        raise DamagedError(f"{path} is damaged: {error}") from None
    if storage.size(name) != SESSION_HEAD_SIZE + head["count"] * SESSION_ENTRY_SIZE + DIGEST_SIZE:
        raise DamagedError(f"{path} is damaged: it has another length than its head says")
    if file_name(clear) != name:
        raise DamagedError(f"{path} is damaged: its record is not the one its name says")
    if (head["base"] == NO_BASE) != (head["inherit"] == 0):
        raise DamagedError(f"{path} is damaged: it builds on a session and on none")
    return Session(name, clear, head["record"], head["base"], head["inherit"], head["count"])


def check(storage: Storage, session: Session) -> None:
    """Compare a session file with its digest and its name, or raise DamagedError."""
    digest, left = (
        hashlib.blake2b(digest_size=DIGEST_SIZE),
        storage.size(session.file) - DIGEST_SIZE,
    )
    path = storage.describe(session.file)
    with open(storage.local(session.file), "rb") as file:
        while left:
            block = file.read(min(left, 1 << 20))
            digest.update(block)
            left -= len(block)
        sound = file.read() == digest.digest()
    if not sound:
        raise DamagedError(f"{path} is damaged: its checksum is wrong")


def digest(storage: Storage, session: Session) -> bytes:
    """The digest at the end of a session file, as it stands there."""
    with open(storage.local(session.file), "rb") as file:
        file.seek(-DIGEST_SIZE, os.SEEK_END)
        return file.read()


def write(
    storage: Storage,
    record: bytes,
    base: bytes,
    inherit: int,
    count: int,
    numbers: Iterable[bytes],
    ids: Iterable[bytes],
) -> Session:
    """Store a session: ``count`` entries, given as byte strings of the two columns, in order.

    ``base`` is the id of the session that they build on; it counts for nothing with ``inherit`` 0.
    """
    base = base if inherit else NO_BASE
    name = file_name(read_clear(record))
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    new = storage.create(name)
    try:
        for part in _parts(
            SESSION_HEAD.build(
                {"inherit": inherit, "count": count, "base": base, "record": record}
            ),
            numbers,
            ids,
        ):
            digest.update(part)
            new.write(part)
        new.write(digest.digest())
        new.finish()
    except BaseException:
        new.abandon()
        raise
    return Session(name, read_clear(record), record, base, inherit, count)


def _parts(head: bytes, numbers: Iterable[bytes], ids: Iterable[bytes]) -> Iterator[bytes]:
    yield head
    yield from numbers
    yield from ids


class Columns:
    """The two columns of a session file, mapped, not read: ``numbers`` uint64[count] and ``ids`` uint8[count, 32]."""

    def __init__(self, path: Path, count: int) -> None:
        import numpy as np

        with open(path, "rb") as file:
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.numbers: Numbers = np.frombuffer(self._mapped, "<u8", count, SESSION_HEAD_SIZE)
        ids = np.frombuffer(self._mapped, np.uint8, count * ID_SIZE, SESSION_HEAD_SIZE + 8 * count)
        self.ids: Ids = ids.reshape(count, ID_SIZE)

    def forget(self) -> None:
        """Let go of the memory that what was looked at takes; looked at again, it is read again.

        Whatever goes through much of a file does this now and then, so that it takes no more memory for a long one.
        """
        self._mapped.madvise(mmap.MADV_DONTNEED)

    def slices(self, rows: int = SLICE) -> "Iterator[tuple[Numbers, Ids]]":
        """Both columns in parts of so many rows, from the first to the last; what was is forgotten."""
        for at in range(0, len(self.numbers), rows):
            yield self.numbers[at : at + rows], self.ids[at : at + rows]
            self.forget()


def columns(storage: Storage, session: Session) -> Columns:
    """The two columns of a session file."""
    return Columns(storage.local(session.file), session.count)


def windows(columns: list[Columns], chunks: int, window: int) -> Iterator[int]:
    """The first chunk number of each window of that many; now and then what was looked at in the columns is forgotten."""
    for count, first in enumerate(range(0, chunks, window), 1):
        yield first
        if count % _KEPT == 0:
            for one in columns:
                one.forget()
