"""The agent's services as methods. What comes back is checked for length before it is read; a call
without a final status has failed, whatever its exit code."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import IO, TypeVar

from backup_vm.agent.transport import Connection, Transport
from backup_vm.errors import AgentError
from common.text import printable
from wire.messages import (
    HEADER,
    HEADER_SIZE,
    KIND_ARCHIVE,
    KIND_OFFER,
    KIND_SLOT,
    KIND_STATUS,
    KIND_VERSION,
    KIND_VOLUME,
    REQUEST_KNOWN,
    ArchiveEntry,
    Message,
    Offer,
    Request,
    Status,
    VolumeEntry,
    largest_frame,
)
from wire.names import BadName, Restoring, parse_volume_name
from wire.status import STATUS_OLD_LIST, Code
from wire.stream import CutShort, read_exactly

_MEANINGS = {
    Code.BAD_REQUEST: (
        "the agent did not understand the request",
        "use the same version in dom0 and here",
    ),
    Code.DENIED: ("the agent does not allow this", "see dom0's log"),
    Code.NO_ARCHIVE: (
        "dom0 has no such archive for this qube",
        "in dom0: sparsebak-agent archive add LABEL --caller NAME",
    ),
    Code.NO_VOLUME: (
        "dom0 has no such volume for this qube",
        "see: sparsebak list, and the agent's configuration in dom0",
    ),
    Code.NO_SESSION: ("dom0 knows no such session", "run: sparsebak backup"),
    Code.BUSY: ("the volume is busy with another operation", "wait for it to end, then try again"),
    Code.INCOMPLETE: ("the session was not extracted completely", "run: sparsebak backup"),
    Code.NO_SPACE: ("dom0's storage is full", "free space in the pool, then try again"),
    Code.SOURCE_FAILED: ("dom0 cannot read or write the volume", "see dom0's log"),
    Code.NOT_AUTHENTIC: ("the session is not authentic", "run: sparsebak scrub"),
    Code.WRONG_VOLUME: (
        "the session belongs to another volume",
        "an administrator can allow it in dom0: allow_restore",
    ),
    Code.DAMAGED: ("the agent's state is damaged", "see dom0's log"),
    Code.INTERNAL: ("the agent failed", "see dom0's log"),
    Code.NOT_HALTED: ("the qube is running", "shut it down, then try again"),
    Code.OLDER: (
        "dom0 does not know this session as the newest of its volume",
        "to restore it anyway, name it with --session",
    ),
    Code.NOT_AS_ASKED: (
        "what was sent is not what dom0 was asked for",
        "use the same version in dom0 and here",
    ),
    Code.NOT_LISTED: (
        "dom0 has not listed its qubes yet, or not since its configuration changed",
        "in dom0: sparsebak-agent volumes",
    ),
}
Parsed = TypeVar("Parsed", bound=Message)
DOM0 = "dom0"
ABSENT = "@default"
"""Target of a call about a qube that does not exist: policy knows it by this name, the argument has
its own.
"""
STALE = 60.0
"""Seconds after which a call that was begun ahead is begun again: dom0 gives up those that stay
silent.
"""
_EXITS = {
    125: "the service is not executable in dom0",
    126: "dom0's policy refused the call",
    127: "the service is not installed in dom0",
}


ENDING = 8
"""Calls that have said their last and are not waited for yet: each has a descriptor and a process.
"""


class RefusedError(AgentError):
    """The agent ended a call with a code other than OK."""

    def __init__(self, what: str, status: Status, last_words: str) -> None:
        self.status = status
        try:
            code = Code(status.code)
        except ValueError:
            code = Code.INTERNAL
        self.refusal = code
        text, hint = _MEANINGS[code]
        if code in (Code.NOT_AUTHENTIC, Code.BAD_REQUEST) and status.detail:
            text += f" (chunk {status.detail})"
        super().__init__(f"{what}: {text}", last_words.split("): ", 1)[-1] if last_words else hint)


@dataclass
class Reply:
    """The frames of a call, then its status."""

    what: str
    connection: Connection
    limit: int
    status: Status | None = None

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Kind and payload of each frame before the status; raise AgentError unless that is OK."""
        stdout = self.connection.process.stdout
        if stdout is None:
            raise AgentError(f"{self.what}: no stream to read from")
        try:
            while True:
                kind, length = HEADER.unpack(read_exactly(stdout, HEADER_SIZE))
                if length > self.limit:
                    raise AgentError(
                        f"{self.what}: the agent sent a frame of impossible length {length}"
                    )
                payload = read_exactly(stdout, length)
                if kind == KIND_STATUS:
                    break
                yield kind, payload
        except CutShort:
            code = self.connection.process.wait()
            reason = _EXITS.get(code, "the agent ended without an answer")
            raise AgentError(
                f"{self.what}: {reason}", self.connection.last_words() or "see dom0's log"
            ) from None
        self.status = self.parsed(Status, payload)
        if self.status.code != Code.OK:
            raise RefusedError(self.what, self.status, self.connection.last_words())

    def parsed(self, layout: type[Parsed], payload: bytes) -> Parsed:
        """A frame's payload as the structure it should be; raise AgentError."""
        try:
            return layout.parse(payload)
        except ValueError as error:
            hint = "use the same version in dom0 and here"
            raise AgentError(
                f"{self.what}: the agent sent a malformed answer: {error}", hint
            ) from None

    def only(self) -> list[tuple[int, bytes]]:
        """All frames at once, for short replies."""
        return list(self.frames())


class Agent:
    """The services, for one archive (16 zero bytes before there is one)."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._archive, self._limit = bytes(16), 1 << 16
        self._prepared: dict[tuple[str, str | None, str], Connection] = {}
        self._since: dict[tuple[str, str | None, str], float] = {}
        self._ending: list[Connection] = []
        self.list_age = 0
        """Seconds since dom0 listed its volumes, if that is too long ago; else 0."""

    def use(self, archive: bytes, chunk_size: int) -> None:
        """Say which archive the calls are about."""
        self._archive, self._limit = archive, max(1 << 16, largest_frame(chunk_size))

    def prepare(self, service: str, qube: str | None = None, volume: str = "") -> None:
        """Begin a call that is about to be made: the service starts while we still do something
        else.
        """
        key = service, qube, volume
        if key not in self._prepared:
            self._prepared[key], self._since[key] = self._start(*key), monotonic()

    def _start(self, service: str, qube: str | None, volume: str) -> Connection:
        """dom0's own volumes are asked of dom0 itself, which is no qube to be a target."""
        return self._transport.start(service, None if qube == DOM0 else qube, volume)

    def close(self) -> None:
        """End calls that were prepared and not made, and wait for those that were."""
        while self._prepared:
            self._prepared.popitem()[1].close()
        while self._ending:
            self._ending.pop().close()

    @contextmanager
    def _call(
        self,
        service: str,
        request: Request,
        qube: str | None = None,
        volume: str = "",
        feed: Callable[[IO[bytes]], None] | None = None,
        what: str = "",
    ) -> Iterator[Reply]:
        what = what or (f"{service} {qube}/{volume}" if qube else service)
        prepared = self._prepared.pop((service, qube, volume), None)
        if prepared is not None and monotonic() - self._since[service, qube, volume] > STALE:
            prepared.close()
            prepared = None
        connection = prepared or self._start(service, qube, volume)
        stdin = connection.process.stdin
        feeder: threading.Thread | None = None
        failure: list[BaseException] = []

        def write() -> None:
            try:
                if stdin is not None:
                    stdin.write(request.build())
                    if feed is not None:
                        feed(stdin)
                    stdin.close()
            except BrokenPipeError:
                pass  # the status says why nothing more was wanted
            except BaseException as error:
                failure.append(error)
                # Not by force: the service sees its input end too early, and undoes what it began.
                with suppress(OSError, ValueError):
                    if stdin is not None:
                        stdin.close()

        try:
            if feed is None:
                write()
            else:
                feeder = threading.Thread(target=write, daemon=True)
                feeder.start()
            reply = Reply(what, connection, self._limit)
            yield reply
            if reply.status is not None and feeder is None:
                self._ending.append(connection)
                while len(self._ending) > ENDING:
                    self._ending.pop(0).close()
        except AgentError:
            if feeder is not None:
                feeder.join(timeout=5)
            if failure:
                raise failure[0] from None
            raise
        finally:
            if connection in self._ending:
                connection.hang_up()
            else:
                connection.close()
            if feeder is not None:
                feeder.join(timeout=5)

    def enroll(self, label: str) -> tuple[ArchiveEntry, list[bytes]]:
        """Parameters and key slots of the archive made in dom0 under a label."""
        return self.introduce(label)[:2]

    def introduce(self, label: str) -> tuple[ArchiveEntry, list[bytes], str]:
        """The same, and the agent's version; empty if it does not tell."""
        with self._call("Enroll", Request(label=label)) as reply:
            frames = reply.only()
        entry = next(
            (
                reply.parsed(ArchiveEntry, payload)
                for kind, payload in frames
                if kind == KIND_ARCHIVE
            ),
            None,
        )
        if entry is None:
            raise AgentError("Enroll: the agent sent no archive")
        version = next((payload for kind, payload in frames if kind == KIND_VERSION), b"")
        return (
            entry,
            [payload for kind, payload in frames if kind == KIND_SLOT],
            printable(version[:32].decode("ascii", "replace")),
        )

    def list(self) -> list[VolumeEntry]:
        """The volumes this qube may back up, and those it has sessions of."""
        with self._call("List", Request(archive=self._archive)) as reply:
            entries = [
                reply.parsed(VolumeEntry, payload)
                for kind, payload in reply.frames()
                if kind == KIND_VOLUME
            ]
        try:
            for entry in entries:
                parse_volume_name(f"{entry.qube}/{entry.volume}")
        except BadName as error:
            raise AgentError(f"List: {error}") from None
        status = reply.status
        self.list_age = status.detail if status and status.flags & STATUS_OLD_LIST else 0
        return entries

    def snapshot(self, qube: str, volume: str, newest: bytes, sequence: int, time: int) -> Offer:
        """Begin a session. ``newest`` and ``sequence``: the archive's newest session; ``time``: the
        run's, 0 for now.
        """
        request = Request(archive=self._archive, session=newest, number=sequence, time=time)
        with self._call("Snapshot", request, qube, volume) as reply:
            frames = reply.only()
        if [kind for kind, _ in frames] != [KIND_OFFER]:
            raise AgentError(f"Snapshot {qube}/{volume}: the agent sent no offer")
        return reply.parsed(Offer, frames[0][1])

    @contextmanager
    def extract(
        self,
        qube: str,
        volume: str,
        session: bytes,
        first: int,
        known: Callable[[IO[bytes]], None] | None = None,
    ) -> Iterator[Reply]:
        """The frames of a session from chunk ``first`` on; ``known`` writes the ids that we
        hold.
        """
        flags = REQUEST_KNOWN if known else 0
        request = Request(archive=self._archive, session=session, number=first, flags=flags)
        with self._call("Extract", request, qube, volume, known) as reply:
            yield reply

    def commit(self, qube: str, volume: str, session: bytes) -> None:
        """Say that the session is on disk."""
        with self._call(
            "Commit", Request(archive=self._archive, session=session), qube, volume
        ) as reply:
            reply.only()

    def abort(self, qube: str, volume: str, session: bytes) -> None:
        """Give a session up."""
        with self._call(
            "Abort", Request(archive=self._archive, session=session), qube, volume
        ) as reply:
            reply.only()

    def verify(self, feed: Callable[[IO[bytes]], None]) -> Status:
        """Have dom0 prove a session; ``feed`` writes it."""
        with self._call("Verify", Request(archive=self._archive), feed=feed) as reply:
            reply.only()
            return reply.status or Status(Code.INTERNAL)

    def restore(
        self, asked: Restoring, feed: Callable[[IO[bytes]], None], absent: bool = False
    ) -> Status:
        """Have dom0 put a session in a volume's place; ``feed`` writes it. ``absent``: the qube is
        to be made again.
        """
        target, request = ABSENT if absent else asked.qube, Request(archive=self._archive)
        what = f"Restore {asked.qube}/{asked.volume}"
        with self._call("Restore", request, target, asked.argument(), feed, what) as reply:
            reply.only()
            return reply.status or Status(Code.INTERNAL)
