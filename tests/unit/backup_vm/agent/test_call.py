# SPDX-License-Identifier: GPL-2.0-or-later
"""How a call ends: with what its status says, or what went wrong on this side."""

import io
from typing import IO

import pytest

from backup_vm.agent.call import RefusedError
from backup_vm.agent.client import ENDING, Agent
from backup_vm.agent.transport import Connection
from backup_vm.errors import AgentError
from wire.messages import HEADER, KIND_STATUS, Status
from wire.status import Code


class Service:
    """A transport, the process it starts, and what became of its connections."""

    def __init__(self, *status: Code) -> None:
        self.answer = b""
        for code in status:
            payload = Status(code).build()
            self.answer += HEADER.pack(KIND_STATUS, len(payload)) + payload
        self.stdin, self.waited = io.BytesIO(), 0

    @property
    def stdout(self) -> IO[bytes]:
        return self._stdout

    def start(
        self, service: str, qube: str | None, volume: str, stdin: IO[bytes] | None = None
    ) -> Connection:
        self.stdin, self._stdout = io.BytesIO(), io.BytesIO(self.answer)
        return Connection(self)  # type: ignore[arg-type]

    def wait(self, timeout: float | None = None) -> int:
        self.waited += 1
        return 0

    def kill(self) -> None:
        pass


def fails_with(error: Exception) -> object:
    def feed(stream: IO[bytes]) -> None:
        raise error

    return feed


def test_what_fails_here_is_told_and_not_what_the_service_made_of_it() -> None:
    for status in ((), (Code.BAD_REQUEST,)):
        with pytest.raises(OSError, match="the disk is gone"):
            Agent(Service(*status)).verify(fails_with(OSError("the disk is gone")))  # type: ignore[arg-type]


def test_a_service_that_wants_no_more_says_why() -> None:
    with pytest.raises(RefusedError) as caught:
        Agent(Service(Code.NOT_AUTHENTIC)).verify(fails_with(BrokenPipeError()))  # type: ignore[arg-type]
    assert caught.value.refusal == Code.NOT_AUTHENTIC


def test_what_fails_here_is_nothing_to_a_service_that_is_content() -> None:
    """As when it had all that it wanted before the rest could be read."""
    status = Agent(Service(Code.OK)).verify(fails_with(OSError("too late")))  # type: ignore[arg-type]
    assert status.code == Code.OK


def test_a_service_that_has_said_its_last_is_not_waited_for_at_once() -> None:
    service = Service(Code.OK)
    agent = Agent(service)
    for _ in range(ENDING + 3):
        agent.list()
    assert service.waited == 3 and service.stdin.closed
    agent.close()
    assert service.waited == ENDING + 3


def test_a_call_that_failed_is_waited_for() -> None:
    service = Service(Code.BUSY)
    with pytest.raises(AgentError):
        Agent(service).list()
    assert service.waited == 1


@pytest.mark.parametrize("code", [code for code in Code if code != Code.OK])
def test_every_refusal_says_what_it_means_and_what_to_do(code: Code) -> None:
    error = RefusedError("sparsebak.List", Status(code), "")
    assert str(error).startswith("sparsebak.List: ") and error.hint
    assert error.refusal == code
