# SPDX-License-Identifier: GPL-2.0-or-later
"""Session files: a record from dom0 and the chunks that changed, as two columns: chunk numbers
(rising) and chunk ids.

An image at a session is, for each chunk number, the newest entry up to that session. ``inherit``
cuts that off: entries of earlier sessions at or beyond it do not count (a volume that was shrunk
and grown again; 0 for a full session).
"""

import os
from collections.abc import Iterable, Sequence
from itertools import chain

from backup_vm.archive import digested
from backup_vm.archive.columns import Columns
from backup_vm.archive.damage import opened
from backup_vm.archive.format import (
    DIGEST_SIZE,
    NO_BASE,
    RECORD_AT,
    SESSION_HEAD_SIZE,
    SessionHead,
    session_size,
    session_size_of,
)
from backup_vm.archive.storage import Storage
from backup_vm.errors import DamagedError
from common.text import session_name, session_names
from wire import LAST_SEQUENCE
from wire.chunks import NotAuthentic
from wire.merkle import chunk_count
from wire.records import Clear, read_clear

SUFFIX = ".session"


class Session:
    """A stored session. ``file`` is its name in the archive, ``clear`` what its record says in
    clear, ``base`` the id of the session that it builds on; NO_BASE if ``inherit`` is 0.
    """

    def __init__(
        self, file: str, clear: Clear, record: bytes, base: bytes, inherit: int, count: int
    ) -> None:
        self.file, self.clear, self.record = file, clear, record
        self.base, self.inherit, self.count = base, inherit, count
        self._name: str | None = None

    def _all(self) -> tuple[object, ...]:
        return self.file, self.record, self.base, self.inherit, self.count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Session) and self._all() == other._all()

    def __hash__(self) -> int:
        return hash((self.file, self.record))

    @property
    def full(self) -> bool:
        """Whether it builds on no other."""
        return self.base == NO_BASE

    @property
    def file_size(self) -> int:
        """Bytes of its file."""
        return session_size_of(self.count)

    @property
    def name(self) -> str:
        """Its time in UTC: ``20261123-061500``; longer where ``tell_apart`` found another one of
        that second.
        """
        return self._name or session_name(self.clear.time)

    @property
    def volume(self) -> str:
        """Id of its volume in hexadecimal."""
        return self.clear.volume_id.hex()

    @property
    def chunks(self) -> int:
        """Chunks of the volume at this session."""
        return chunk_count(self.clear.size, self.clear.chunk_size)


def tell_apart(series: Sequence[Session]) -> None:
    """Give each session of a volume another name, also those of one second."""
    if len({one.clear.time for one in series}) != len(series):
        names = session_names((one.clear.time, one.clear.session) for one in series)
        for one in series:
            one._name = names[one.clear.session]


def file_name(clear: Clear) -> str:
    """Name in the archive: ``volumes/<volume id>/<sequence>-<session id>.session``."""
    return f"volumes/{clear.volume_id.hex()}/{clear.sequence:010d}-{clear.session.hex()}{SUFFIX}"


def load(storage: Storage, name: str) -> Session:
    """Read the head of a session file, or raise DamagedError."""
    path = storage.describe(name)
    with opened(storage, name) as fd:
        raw, size = os.pread(fd, SESSION_HEAD_SIZE, 0), os.fstat(fd).st_size
    try:
        head, record = SessionHead.parse(raw[:RECORD_AT]), raw[RECORD_AT:]
        clear = read_clear(record)
    except (ValueError, NotAuthentic) as error:
        raise DamagedError(f"{path} is damaged: {error}") from None
    session = Session(name, clear, record, head.base, head.inherit, head.count)
    if size != session_size(raw):
        raise DamagedError(f"{path} is damaged: it has another length than its head says")
    if clear.sequence > LAST_SEQUENCE:  # dom0 would refuse it, and must not hear of it
        raise DamagedError(f"{path} is damaged: it claims an impossible number, {clear.sequence}")
    if file_name(clear) != name:
        raise DamagedError(f"{path} is damaged: its record is not the one its name says")
    if session.count > session.chunks or session.inherit > session.chunks:
        raise DamagedError(f"{path} is damaged: it has more chunks than its volume")
    if (session.base == NO_BASE) != (session.inherit == 0):
        raise DamagedError(f"{path} is damaged: it builds on a session and on none")
    return session


def check(storage: Storage, session: Session) -> None:
    """Compare a session file with its digest, and its chunk numbers with each other, or raise
    DamagedError.
    """
    with opened(storage, session.file) as fd:
        sound = digested.sound(fd)
    if not sound:
        path = storage.describe(session.file)
        raise DamagedError(f"{path} is damaged: its checksum is wrong")
    columns(storage, session).check()  # whoever can write to the disk can make a checksum


def digest(storage: Storage, session: Session) -> bytes:
    """The digest at the end of a session file, as it stands there. Raises DamagedError."""
    with opened(storage, session.file) as fd:
        return os.pread(fd, DIGEST_SIZE, os.fstat(fd).st_size - DIGEST_SIZE)


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
    head = SessionHead(inherit, count, base).build() + record
    digested.write(storage, name, chain([head], numbers, ids))
    return Session(name, read_clear(record), record, base, inherit, count)


def columns(storage: Storage, session: Session) -> Columns:
    """The two columns of a session file."""
    return Columns(storage, session)
