# SPDX-License-Identifier: GPL-2.0-or-later
"""One call of a service: its request, its reply frame by frame, and its end.

What comes back is checked for length before it is read; a call without a final status has failed,
whatever its exit code.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import IO, TypeVar

from backup_vm.agent.transport import Connection
from backup_vm.errors import AgentError
from wire.messages import HEADER, HEADER_SIZE, KIND_STATUS, Message, Status
from wire.status import Code
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
    Code.NOT_INSTALLED: ("what this needs is not installed in dom0", "see dom0's log"),
}
Parsed = TypeVar("Parsed", bound=Message)
_EXITS = {
    125: ("the service is not executable in dom0", "in dom0: install sparsebak-dom0 again"),
    126: (
        "dom0's policy refused the call, or its user did",
        "if the qube is new, in dom0: sparsebak-agent setup NAME-OF-THIS-QUBE",
    ),
    127: ("the service is not installed in dom0", "in dom0: install sparsebak-dom0"),
}
"""Exit codes of qrexec-client-vm: what each means, and what to do."""
_LAST_BYTES = 5.0
"""Seconds that the thread which feeds a call has to end when the call has."""


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


class Reply:
    """The frames of a call, then its status."""

    def __init__(self, what: str, connection: Connection, limit: int) -> None:
        self.what, self.connection, self.limit = what, connection, limit
        self.status: Status | None = None

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
            other = "the agent ended without an answer", self.connection.last_words()
            reason, hint = _EXITS.get(code, other)
            raise AgentError(f"{self.what}: {reason}", hint or "see dom0's log") from None
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


class _Feeder(threading.Thread):
    """Writes what a call sends: its request, then what ``feed`` writes, if anything.

    ``failure``: what went wrong with that on this side.
    """

    def __init__(
        self, stdin: IO[bytes] | None, request: bytes, feed: Callable[[IO[bytes]], None] | None
    ) -> None:
        super().__init__(daemon=True)
        self._stdin, self._request, self._feed = stdin, request, feed
        self.failure: BaseException | None = None

    def begin(self) -> None:
        """Write a request alone at once; with more to follow, beside the reply: the service answers
        before it has read all, and neither side may wait for the other with full pipes.
        """
        if self._feed is None:
            self.run()
        else:
            self.start()

    def run(self) -> None:
        """Write it."""
        if self._stdin is None:
            return
        try:
            self._stdin.write(self._request)
            if self._feed is not None:
                self._feed(self._stdin)
            self._stdin.close()
        except BrokenPipeError:
            pass  # the status says why nothing more was wanted
        except BaseException as error:
            self.failure = error
            # Not by force: the service sees its input end too early, and undoes what it began.
            with suppress(OSError, ValueError):
                self._stdin.close()

    @property
    def alongside(self) -> bool:
        """Whether it runs beside the reader of the reply."""
        return self._feed is not None

    def end(self) -> None:
        """Wait for its end, but not for long: what it writes to may be held open elsewhere."""
        if self.alongside and self.ident is not None:
            self.join(timeout=_LAST_BYTES)


class Call:
    """A call that is being made: entered, it sends its request, if that was not sent ahead, and
    gives the reply to read.

    ``leave``: takes a connection that has said its last, and need not be waited for.
    """

    def __init__(
        self,
        reply: Reply,
        request: bytes,
        feed: Callable[[IO[bytes]], None] | None,
        leave: Callable[[Connection], None],
    ) -> None:
        self._reply, self._leave = reply, leave
        self._feeder = _Feeder(reply.connection.process.stdin, request, feed)
        self._sent = False

    def send(self) -> None:
        """Send the request, and read the reply later: the service answers meanwhile, as far as
        there is room on the way.
        """
        self._sent = True
        try:
            self._feeder.begin()
        except BaseException:
            self._reply.connection.close()
            raise

    def give_up(self) -> None:
        """Hang up without having read the reply."""
        self._reply.connection.close()

    def __enter__(self) -> Reply:
        if not self._sent:
            self.send()
        return self._reply

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if isinstance(error, AgentError):
                # The agent failed because what it was fed ended too early: say why that was.
                self._feeder.end()
                if self._feeder.failure is not None:
                    raise self._feeder.failure from None
        finally:
            if error is None and self._reply.status is not None and not self._feeder.alongside:
                self._leave(self._reply.connection)
            else:
                self._reply.connection.close()
            self._feeder.end()
