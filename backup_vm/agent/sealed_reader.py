# SPDX-License-Identifier: GPL-2.0-or-later
"""Asking a backup VM for the sealed chunks of one session, by its service sparsebak.Read.

The backup VM is trusted with nothing: lengths are checked before anything is read, and what comes
is to be proven by whoever asked.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TypeVar

from backup_vm.agent.transport import Connection
from backup_vm.agent.transport.qrexec import QrexecTransport
from backup_vm.errors import AgentError, DamagedError, SparsebakError
from wire.chunks import ID_SIZE, OVERHEAD, ZERO_ID
from wire.messages import (
    CHUNK_HEAD,
    CHUNK_HEAD_SIZE,
    HEADER,
    HEADER_SIZE,
    KIND_CHUNK,
    KIND_IDS,
    KIND_RECORD,
    KIND_STATUS,
    Status,
)
from wire.reading import WANT_CHUNKS, WANT_IDS, ReadRequest, reading
from wire.records import RECORD_SIZE
from wire.status import Code
from wire.stream import CutShort, read_exactly

SERVICE = "Read"
PATIENCE = 60.0
"""Seconds that a frame of a reply may take: a file system must not wait for good."""
_EXITS = {
    126: (
        "dom0's policy refused it",
        "in dom0, let this qube read: qvm-tags QUBE add sparsebak-reader",
        Code.DENIED,
    ),
    127: (
        "it has no service sparsebak.Read",
        "install sparsebak-vm in its template",
        Code.INTERNAL,
    ),
}
_MEANINGS = {
    Code.NO_SESSION: "it has no such session",
    Code.NO_ARCHIVE: "its archive is not there: is the disk attached?",
    Code.BUSY: "its archive is in use by another run",
    Code.BAD_REQUEST: "it did not understand the request: is it another version?",
}
Result = TypeVar("Result")


class NotGiven(AgentError):
    """The backup VM gave nothing; ``status`` says why, as far as that is known."""

    def __init__(self, text: str, hint: str, status: int) -> None:
        super().__init__(text, hint)
        self.status = status


class SealedReader:
    """A session of a volume in a backup VM. Safe to share between threads.

    A backup VM hangs up when nothing is asked for a while, so that its archive can be written to;
    then it is called again.
    """

    def __init__(self, qube: str, volume_id: bytes, session: bytes, chunk_size: int) -> None:
        self._qube, self._argument = qube, reading(volume_id, session)
        self._longest = chunk_size + OVERHEAD
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._silent = False

    def record(self) -> bytes:
        """The session's record, as it is there."""
        with self._lock:
            self.close()
            return self._call()

    def ids(self, first: int, end: int) -> list[bytes]:
        """Ids of chunks, at most wire.reading.MAX_IDS."""

        def ask() -> list[bytes]:
            size = (end - first) * ID_SIZE
            (raw,) = self._answer(WANT_IDS, first, end - first, KIND_IDS, [(size, size)])
            return [raw[at : at + ID_SIZE] for at in range(0, size, ID_SIZE)]

        return self._asked(ask)

    def sealed(self, number: int, chunk_id: bytes) -> bytes:
        """The sealed chunk of a number, which claims to have that id."""
        return self.sealed_run(number, [chunk_id])[0]

    def sealed_run(self, first: int, ids: list[bytes]) -> list[bytes]:
        """The sealed chunks of numbers that follow each other, at most wire.reading.MAX_CHUNKS,
        which claim to have these ids; nothing for a chunk of zeros.
        """
        limits = [
            (CHUNK_HEAD_SIZE + OVERHEAD, CHUNK_HEAD_SIZE + self._longest)
            if chunk_id != ZERO_ID
            else (CHUNK_HEAD_SIZE, CHUNK_HEAD_SIZE)
            for chunk_id in ids
        ]

        def ask() -> list[bytes]:
            found = []
            answer = self._answer(WANT_CHUNKS, first, len(ids), KIND_CHUNK, limits)
            for number, (chunk_id, raw) in enumerate(zip(ids, answer, strict=True), first):
                if CHUNK_HEAD.unpack(raw[:CHUNK_HEAD_SIZE]) != (number, chunk_id):
                    raise DamagedError(f"{self._qube} gave another chunk than number {number}")
                found.append(raw[CHUNK_HEAD_SIZE:])
            return found

        return self._asked(ask)

    def close(self) -> None:
        """Hang up."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _asked(self, ask: Callable[[], Result]) -> Result:
        """What ``ask`` gets: by the call there is, and where the backup VM has hung up on that, by
        another one.
        """
        with self._lock:
            calls = 2 if self._connection is not None else 1
            while True:
                calls -= 1
                try:
                    if self._connection is None:
                        self._call()
                    return ask()
                except (CutShort, BrokenPipeError):
                    self.close()
                    if self._silent:
                        raise self._failed("it does not answer") from None
                    if not calls:
                        raise self._failed("it hung up") from None
                except BaseException:
                    self.close()  # what else it sends belongs to nothing
                    raise

    def _call(self) -> bytes:
        """Begin a call; returns the record that it begins with."""
        connection = QrexecTransport().start(SERVICE, self._qube, self._argument)
        self._connection = connection
        try:
            return self._reply(KIND_RECORD, [(RECORD_SIZE, RECORD_SIZE)])[0]
        except CutShort:
            self.close()  # which ends it by force, if need be
            code = connection.process.wait()
            if self._silent:
                raise self._failed("it does not answer") from None
            raise self._failed(
                *_EXITS.get(code, ("it gave no answer", "see its journal", Code.INTERNAL))
            ) from None
        except BaseException:
            self.close()
            raise

    def _answer(
        self, wanted: int, first: int, count: int, kind: int, limits: list[tuple[int, int]]
    ) -> list[bytes]:
        request = ReadRequest(wanted=wanted, first=first, count=count)
        return self._reply(kind, limits, request.build())

    def _reply(self, kind: int, limits: list[tuple[int, int]], request: bytes = b"") -> list[bytes]:
        """Ask, if there is something to ask, and return the payloads of a reply's frames, as many
        as there are limits of their lengths, each within its own; raise AgentError for anything
        else.
        """
        process = self._connection.process if self._connection else None
        if self._connection is None or process is None:
            raise CutShort("no stream to read from")
        if process.stdin is None or process.stdout is None:
            raise CutShort("no stream to read from")
        self._silent = False
        with self._patience(self._connection):
            process.stdin.write(request)  # waits, too, where nobody takes it
            process.stdin.flush()
        found = []
        for one in limits:
            with self._patience(self._connection):
                found.append(self._frame(process.stdout, kind, one))
        with self._patience(self._connection):
            self._frame(process.stdout, KIND_STATUS, (0, 0))
        return found

    @contextmanager
    def _patience(self, connection: Connection) -> Iterator[None]:
        timer = threading.Timer(PATIENCE, self._give_up, [connection])
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _give_up(self, connection: Connection) -> None:
        self._silent = True
        connection.kill()

    def _frame(self, stdout: IO[bytes], kind: int, limits: tuple[int, int]) -> bytes:
        """The payload of a frame of that kind, of a length within the limits; of a status that
        says that all is well, nothing.
        """
        found, length = HEADER.unpack(read_exactly(stdout, HEADER_SIZE))
        low, high = (Status.length(),) * 2 if found == KIND_STATUS else limits
        if found not in (kind, KIND_STATUS) or not low <= length <= high:
            raise self._failed(f"it sent a frame of kind {found} and length {length}")
        raw = read_exactly(stdout, length)
        if found != KIND_STATUS:
            return raw
        status = Status.parse(raw)
        if kind == KIND_STATUS and status.code == Code.OK:
            return b""
        raise self._refused(status)

    def _refused(self, status: Status) -> SparsebakError:
        if status.code == Code.DAMAGED:
            return DamagedError(
                f"chunk {status.detail} is damaged or missing in the archive of {self._qube}",
                f"in {self._qube}: sparsebak scrub",
            )
        meanings = {int(code): text for code, text in _MEANINGS.items()}
        return self._failed(meanings.get(status.code, "it failed"), "see its journal", status.code)

    def _failed(self, text: str, hint: str = "", status: int = Code.INTERNAL) -> NotGiven:
        return NotGiven(f"cannot read from {self._qube}: {text}", hint, status)
