# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent's services as methods."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import IO, NamedTuple

from backup_vm.agent.call import Call, Reply
from backup_vm.agent.transport import Connection, Transport
from backup_vm.errors import AgentError
from common.text import printable
from wire import NO_ARCHIVE
from wire.messages import (
    KIND_ARCHIVE,
    KIND_OFFER,
    KIND_SLOT,
    KIND_VERSION,
    KIND_VOLUME,
    KIND_WANTED,
    REQUEST_DIFFERING,
    REQUEST_KNOWN,
    ArchiveEntry,
    Offer,
    Request,
    Status,
    VolumeEntry,
    largest_frame,
)
from wire.names import BadName, Restoring, parse_volume_name
from wire.status import STATUS_OLD_LIST, Code
from wire.wanted import Wanted

DOM0 = "dom0"
ABSENT = "@default"
"""Target of a call about a qube that does not exist: policy knows it by this name, the argument has
its own.
"""
STALE = 60.0
"""Seconds after which a call that was begun ahead is begun again: dom0 gives up those that stay
silent.
"""
ENDING = 8
"""Calls that have said their last and are not waited for yet: each has a descriptor and a process.
"""


class Enrolled(NamedTuple):
    """An archive as dom0 has it: its parameters, the key slots for its archive.toml, and the
    agent's version, empty if it does not tell.
    """

    archive: ArchiveEntry
    slots: list[bytes]
    version: str


class Agent:
    """The services, for one archive (none before ``use``)."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._archive, self._limit = NO_ARCHIVE, 1 << 16
        self._prepared: dict[tuple[str, str | None, str], Connection] = {}
        self._since: dict[tuple[str, str | None, str], float] = {}
        self._ending: list[Connection] = []
        self._asked: list[Call] = []
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
        while self._asked:
            self._asked.pop().give_up()
        while self._prepared:
            self._prepared.popitem()[1].close()
        while self._ending:
            self._ending.pop().close()

    def _call(
        self,
        service: str,
        request: Request,
        qube: str | None = None,
        volume: str = "",
        feed: Callable[[IO[bytes]], None] | None = None,
        what: str = "",
    ) -> Call:
        prepared = self._prepared.pop((service, qube, volume), None)
        if prepared is not None and monotonic() - self._since[service, qube, volume] > STALE:
            prepared.close()
            prepared = None
        connection = prepared or self._start(service, qube, volume)
        what = what or (f"{service} {qube}/{volume}" if qube else service)
        reply = Reply(what, connection, self._limit)
        return Call(reply, request.build(), feed, self._leave)

    def _leave(self, connection: Connection) -> None:
        """Hang up on a service that has sent its status, and wait for its end later: that takes it
        some milliseconds, in which the next call is made.
        """
        connection.hang_up()
        self._ending.append(connection)
        while len(self._ending) > ENDING:
            self._ending.pop(0).close()

    def _ahead(self, call: Call) -> Call:
        """Send a call's request now, for its reply to be read later."""
        call.send()
        self._asked.append(call)
        return call

    @contextmanager
    def answered(self, call: Call) -> Iterator[Reply]:
        """The reply of a call whose request may have been sent ahead."""
        if call in self._asked:
            self._asked.remove(call)
        with call as reply:
            yield reply

    def enroll(self, label: str) -> Enrolled:
        """What dom0 says of the archive made there under a label."""
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
        return Enrolled(
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
                parse_volume_name(entry.name)
        except BadName as error:
            raise AgentError(f"List: {error}") from None
        status = reply.status
        self.list_age = status.detail if status and status.flags & STATUS_OLD_LIST else 0
        return entries

    def snapshot(self, qube: str, volume: str, newest: bytes, sequence: int, time: int) -> Offer:
        """Begin a session. ``newest`` and ``sequence``: the archive's newest session; ``time``: the
        run's, 0 for now.
        """
        return self.ask_snapshot(qube, volume, newest, sequence, time)()

    def ask_snapshot(
        self, qube: str, volume: str, newest: bytes, sequence: int, time: int
    ) -> Callable[[], Offer]:
        """Send the request of ``snapshot`` alone; what is returned waits for the offer."""
        request = Request(archive=self._archive, session=newest, number=sequence, time=time)
        call = self._ahead(self._call("Snapshot", request, qube, volume))

        def offer() -> Offer:
            with self.answered(call) as reply:
                frames = reply.only()
            if [kind for kind, _ in frames] != [KIND_OFFER]:
                raise AgentError(f"Snapshot {qube}/{volume}: the agent sent no offer")
            return reply.parsed(Offer, frames[0][1])

        return offer

    def extract(
        self,
        qube: str,
        volume: str,
        session: bytes,
        first: int,
        known: Callable[[IO[bytes]], None] | None = None,
        ahead: bool = False,
    ) -> Call:
        """The frames of a session from chunk ``first`` on; ``known`` writes the ids that we
        hold. With ``ahead`` the request is sent at once, and the call is entered by ``answered``.
        """
        flags = REQUEST_KNOWN if known else 0
        request = Request(archive=self._archive, session=session, number=first, flags=flags)
        call = self._call("Extract", request, qube, volume, known)
        return self._ahead(call) if ahead else call

    def commit(self, qube: str, volume: str, session: bytes) -> None:
        """Say that the session is on disk."""
        self.ask_commit(qube, volume, session)()

    def ask_commit(self, qube: str, volume: str, session: bytes) -> Callable[[], None]:
        """Send the request of ``commit`` alone; what is returned waits until that is done."""
        request = Request(archive=self._archive, session=session)
        call = self._ahead(self._call("Commit", request, qube, volume))

        def done() -> None:
            with self.answered(call) as reply:
                reply.only()

        return done

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
        what = f"Restore {asked.name}"
        with self._call("Restore", request, target, asked.argument(), feed, what) as reply:
            reply.only()
            return reply.status or Status(Code.INTERNAL)

    def restore_differing(
        self,
        asked: Restoring,
        chunks: int,
        feed: Callable[[IO[bytes], Callable[[], Wanted]], None],
    ) -> tuple[Status, Wanted]:
        """As ``restore``, but only what differs from the volume's present contents is sent, by what
        dom0 knows of them. Returns, too, which chunks it wanted, of an image of so many.
        """
        told = _Told(chunks)
        request = Request(archive=self._archive, flags=REQUEST_DIFFERING)
        what = f"Restore {asked.name}"

        def send(stream: IO[bytes]) -> None:
            feed(stream, told.wait)

        with self._call("Restore", request, asked.qube, asked.argument(), send, what) as reply:
            try:
                for kind, payload in reply.frames():
                    told.take(kind, payload, what)
            finally:
                told.end()
            return reply.status or Status(Code.INTERNAL), told.wanted


class _Told:
    """Which chunks a restore wants: it comes in frames, and the thread that sends waits for it."""

    def __init__(self, chunks: int) -> None:
        self.wanted, self._at = Wanted(chunks), 0
        self._over = threading.Event()
        self._settle()

    def take(self, kind: int, payload: bytes, what: str) -> None:
        """A frame of the reply; raise AgentError for what is none of these."""
        try:
            if kind != KIND_WANTED:
                raise ValueError(f"a frame of kind {kind}")
            self._at = self.wanted.take(self._at, payload)
        except ValueError as error:
            raise AgentError(
                f"{what}: the agent sent a malformed answer: {error}",
                "use the same version in dom0 and here",
            ) from None
        self._settle()

    def _settle(self) -> None:
        if self._at == self.wanted.chunks:
            self._over.set()

    def end(self) -> None:
        """No more comes."""
        self._over.set()

    def wait(self) -> Wanted:
        """All of it; BrokenPipeError where the call ended before that, and so wants nothing."""
        self._over.wait()
        if self._at != self.wanted.chunks:
            raise BrokenPipeError("the call has ended")
        return self.wanted
