# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever a backup VM answers to a reader: it is what was asked for, or an error, and each call
that is begun is ended.
"""

import io
import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.agent import sealed_reader
from backup_vm.agent.sealed_reader import SealedReader
from backup_vm.agent.transport import Connection
from backup_vm.errors import SparsebakError
from wire.chunks import OVERHEAD, ZERO_ID
from wire.messages import CHUNK_HEAD, KIND_CHUNK, KIND_IDS, KIND_RECORD, Status
from wire.records import RECORD_SIZE
from wire.status import Code
from wire.stream import send, write_frame

SIZE = 64
IDS = [bytes([number]) * 32 for number in range(1, 4)]
RUN = [IDS[1], ZERO_ID, IDS[2]]
SEALED = bytes(OVERHEAD + 20)
RECORD = random.Random(1).randbytes(RECORD_SIZE)


def answers(code: Code = Code.OK) -> bytes:
    """To the call itself, to a request for ids, and to one for three chunks, one of zeros."""
    out = io.BytesIO()
    heads = [CHUNK_HEAD.pack(number, one) for number, one in enumerate(RUN, 1)]
    chunks = [heads[0] + SEALED, heads[1], heads[2] + SEALED]
    for kind, payloads in (
        (KIND_RECORD, [RECORD]),
        (KIND_IDS, [b"".join(IDS)]),
        (KIND_CHUNK, chunks),
    ):
        for payload in payloads:
            write_frame(out, kind, payload)
        send(out, Status(code))
    return out.getvalue()


class Process:
    """A call whose answer is known."""

    def __init__(self, answer: bytes) -> None:
        self.stdin, self.stdout, self.ended = io.BytesIO(), io.BytesIO(answer), False

    def wait(self, timeout: float | None = None) -> int:
        self.ended = True
        return 0

    kill = wait


def asked(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> list[object]:
    """What a reader takes from it, up to an error."""
    calls: list[Process] = []

    class Transport:
        def start(self, *words: str) -> Connection:
            calls.append(Process(answer))
            return Connection(calls[-1])  # type: ignore[arg-type]

    monkeypatch.setattr(sealed_reader, "QrexecTransport", Transport)
    reader, found = SealedReader("there", bytes(16), bytes(16), SIZE), list[object]()
    with suppress(SparsebakError):
        found.append(reader.record())
        found.append(reader.ids(0, len(IDS)))
        found += reader.sealed_run(1, RUN)
    reader.close()
    assert all(call.ended for call in calls) and len(calls) <= 3
    return found


MUTATIONS = st.lists(
    st.tuples(st.sampled_from("xci"), st.floats(0, 1, exclude_max=True), st.binary(max_size=40)),
    max_size=3,
)


@given(mutations=MUTATIONS)
def test_any_answer_is_what_was_asked_for_or_an_error(
    mutations: list[tuple[str, float, bytes]],
) -> None:
    raw = answers()
    for how, where, data in mutations:
        at = int(len(raw) * where)
        if how == "x":
            raw = (
                raw[:at]
                + bytes(a ^ b for a, b in zip(raw[at:], data, strict=False))
                + raw[at + min(len(data), len(raw) - at) :]
            )
        elif how == "c":
            raw = raw[:at]
        else:
            raw = raw[:at] + data + raw[at:]
    with pytest.MonkeyPatch.context() as patch:
        found = asked(patch, raw)
    if raw == answers():
        assert found == [RECORD, IDS, SEALED, b"", SEALED]
    assert len(found) in (0, 1, 2, 5)
    for one, kind in zip(found, (bytes, list, bytes, bytes, bytes), strict=False):
        assert isinstance(one, kind)
    assert [len(one) for one in found[:2]] == [RECORD_SIZE, len(IDS)][: len(found)]  # type: ignore[arg-type]
    assert all(OVERHEAD <= len(one) <= SIZE + OVERHEAD for one in found[2::2])  # type: ignore[arg-type]
    assert found[3:4] in ([], [b""])


@pytest.mark.parametrize("code", [code for code in Code if code != Code.OK])
def test_a_refusal_is_an_error(monkeypatch: pytest.MonkeyPatch, code: Code) -> None:
    assert asked(monkeypatch, answers(code)) == []
