# SPDX-License-Identifier: GPL-2.0-or-later
"""Giving a reader the sealed chunks of one session: what sparsebak.Read does in the backup VM.

Nothing is opened here, and nothing given but what is in that session. Memory is that of one chunk.
"""

import sqlite3
from collections.abc import Callable
from contextlib import suppress

from backup_vm.archive import lookup
from backup_vm.archive.archive import Archive
from backup_vm.archive.image import Image, split
from backup_vm.archive.packs import PackReader
from backup_vm.errors import DamagedError, LockedError, NoArchiveError, SparsebakError
from wire.chunks import ZERO_ID
from wire.messages import CHUNK_HEAD, KIND_CHUNK, KIND_IDS, KIND_RECORD, Status
from wire.reading import WANT_IDS, ReadRequest
from wire.status import Code
from wire.stream import CutShort, Reader, Writer, read_exactly, send, write_frame

IDLE = 60.0
"""Seconds that a reader may take to ask for something, or to take what it asked for: an archive
that is read cannot be written to. One that comes later calls again.
"""


class Idle(Exception):
    """The reader took too long."""


class Serving:
    """One session, and the two streams of a call. ``busy`` is called before each wait for the
    reader: it must have Idle raised when one takes longer than IDLE.
    """

    def __init__(
        self,
        archive: Archive,
        image: Image,
        stdin: Reader,
        stdout: Writer,
        busy: Callable[[], None],
    ) -> None:
        self._archive, self._image = archive, image
        self._stdin, self._stdout, self._busy = stdin, stdout, busy

    def run(self) -> None:
        """Answer until the reader has enough; then all is well. Raises Idle."""
        write_frame(self._stdout, KIND_RECORD, self._image.session.record)
        self._end(Status(Code.OK))
        with PackReader(self._archive.storage) as packs, suppress(CutShort):
            while True:
                self._busy()
                untrusted_raw = read_exactly(self._stdin, ReadRequest.length())
                try:
                    request = ReadRequest.parse(untrusted_raw)
                except ValueError:
                    return self._end(Status(Code.BAD_REQUEST))
                if not request.fits(self._image.chunks):
                    return self._end(Status(Code.BAD_REQUEST))
                self._end(self._answer(request, packs))

    def _answer(self, request: ReadRequest, packs: PackReader) -> Status:
        try:
            ids = split(self._image.ids(request.first, request.first + request.count))
            if request.wanted == WANT_IDS:
                write_frame(self._stdout, KIND_IDS, b"".join(ids))
                return Status(Code.OK)
            return self._chunks(request.first, ids, packs)
        except BrokenPipeError:
            raise
        except (SparsebakError, OSError, sqlite3.Error) as error:
            return Status(code_of(error), detail=request.first)

    def _chunks(self, first: int, ids: list[bytes], packs: PackReader) -> Status:
        session = self._image.session
        with self._archive.looking.present(session):
            places = lookup.places(self._archive, session, (i for i in ids if i != ZERO_ID))
            for number, chunk_id in enumerate(ids, first):
                self._busy()
                sealed: bytes | memoryview = b""
                if chunk_id != ZERO_ID:
                    if chunk_id not in places:
                        return Status(Code.DAMAGED, detail=number)
                    try:
                        sealed = lookup.read(self._archive, packs, chunk_id, places[chunk_id])
                    except DamagedError:
                        return Status(Code.DAMAGED, detail=number)
                head = CHUNK_HEAD.pack(number, chunk_id)
                write_frame(self._stdout, KIND_CHUNK, head + bytes(sealed))
        return Status(Code.OK)

    def _end(self, status: Status) -> None:
        send(self._stdout, status)
        self._stdout.flush()


def code_of(error: Exception) -> Code:
    """What a reader is told of an error: a code, and no text."""
    if isinstance(error, DamagedError):
        return Code.DAMAGED
    if isinstance(error, LockedError):
        return Code.BUSY
    return Code.NO_ARCHIVE if isinstance(error, NoArchiveError) else Code.INTERNAL
