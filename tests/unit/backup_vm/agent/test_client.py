# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever an agent answers, a call gives a value or an AgentError that names the call."""

import io
from collections.abc import Callable
from typing import IO

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backup_vm.agent.client import Agent
from backup_vm.agent.transport import Connection
from backup_vm.errors import AgentError
from wire.layout import LAST_TIME
from wire.messages import (
    HEADER,
    KIND_STATUS,
    KIND_WANTED,
    ArchiveEntry,
    Offer,
    Status,
    VolumeEntry,
)
from wire.names import Restoring

Frame = tuple[int, bytes]
LAYOUTS = (ArchiveEntry, Offer, VolumeEntry)
DONE = (KIND_STATUS, Status(0).build())


def restored(agent: Agent) -> object:
    """Of an image of ten chunks; what is fed waits to be told which of them are wanted."""
    asked = Restoring("work", "private", "20260101-000000")
    return agent.restore_differing(asked, 10, lambda stream, told: stream.write(bytes(len(told()))))


CALLS: dict[str, Callable[[Agent], object]] = {
    "Restore work/private": restored,
    "List": lambda agent: agent.list(),
    "Enroll": lambda agent: agent.enroll("label"),
    "Snapshot work/private": lambda agent: agent.snapshot("work", "private", bytes(16), 0, 0),
}


class Answering:
    """A transport to an agent, and the process, that answers always the same."""

    def __init__(self, *frames: Frame) -> None:
        answer = b"".join(HEADER.pack(kind, len(payload)) + payload for kind, payload in frames)
        self.stdin, self.stdout = io.BytesIO(), io.BytesIO(answer)

    def start(
        self, service: str, qube: str | None, volume: str, stdin: IO[bytes] | None = None
    ) -> Connection:
        return Connection(self)  # type: ignore[arg-type]

    def wait(self, timeout: float | None = None) -> int:
        return 0


frame = st.one_of(
    st.sampled_from(LAYOUTS).flatmap(
        lambda layout: st.binary(min_size=layout.length(), max_size=layout.length()).map(
            lambda raw: (layout.KIND, raw)
        )
    ),
    st.tuples(st.integers(0, 20), st.binary(max_size=20)),
)


@pytest.mark.parametrize("name", CALLS)
@given(frames=st.lists(frame, max_size=3))
@example(frames=[(KIND_STATUS, b"short")])
@example(frames=[(Offer.KIND, bytes(Offer.length() + 4)), DONE])
@example(frames=[(VolumeEntry.KIND, b""), DONE])
@example(frames=[(KIND_WANTED, b"\x01\x02"), DONE])
@example(frames=[(KIND_WANTED, b"\x01\x02"), (KIND_WANTED, b"\x01\x02"), DONE])
@example(frames=[(KIND_WANTED, b"\x01\xff"), DONE])
@example(frames=[(ArchiveEntry.KIND, b"\xff" * ArchiveEntry.length()), DONE])
def test_any_answer_is_a_value_or_an_error(name: str, frames: list[Frame]) -> None:
    for answer in (frames, [*frames, DONE]):
        try:
            CALLS[name](Agent(Answering(*answer)))
        except AgentError as error:
            assert str(error).startswith(name)


def test_an_offer_of_an_impossible_time_is_refused() -> None:
    good = Offer(bytes(16), bytes(16), bytes(16), 1, LAST_TIME, 1, 1, 1, 0)
    assert CALLS["Snapshot work/private"](Agent(Answering((good.KIND, good.build()), DONE))) == good
    late = good.build().replace(
        LAST_TIME.to_bytes(8, "little"), (LAST_TIME + 1).to_bytes(8, "little")
    )
    said = "malformed answer: Offer: time is .* later than the year 9999"
    with pytest.raises(AgentError, match=said):
        CALLS["Snapshot work/private"](Agent(Answering((good.KIND, late), DONE)))
