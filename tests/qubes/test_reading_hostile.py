# SPDX-License-Identifier: GPL-2.0-or-later
"""Readers and backup VMs that are hostile: what either asks for and answers."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from backup_vm.agent import sealed_reader
from backup_vm.agent.sealed_reader import SealedReader
from backup_vm.agent.transport import qrexec, spawning
from backup_vm.errors import AgentError, DamagedError
from backup_vm.jobs.distant_image import DistantImage
from backup_vm.jobs.lazy_image import ChunkCache
from tests.patience import AT_ONCE
from tests.qubes.kit import BACKUP_VM
from tests.qubes.reading_kit import HERE, Reading, asked
from wire.messages import HEADER, KIND_CHUNK, KIND_IDS, KIND_RECORD, KIND_STATUS, Status
from wire.reading import MAX_CHUNKS, MAX_IDS, WANT_CHUNKS, WANT_IDS, ReadRequest, reading
from wire.records import RECORD_SIZE
from wire.status import Code


def serve(disposable: Reading, argument: str, sent: bytes) -> list[tuple[int, bytes]]:
    """What the service answers to raw bytes, frame by frame."""
    environment = {"PATH": os.environ["PATH"], "SPARSEBAK": str(disposable.site.root / "sparsebak")}
    done = subprocess.run(
        [HERE.parent.parent / "qubes-vm/rpc/sparsebak.Read", argument],
        input=sent,
        capture_output=True,
        env=environment,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    raw, frames = done.stdout, []
    while raw:
        kind, length = HEADER.unpack(raw[: HEADER.size])
        frames.append((kind, raw[HEADER.size :][:length]))
        raw = raw[HEADER.size + length :]
    return frames


def test_what_a_hostile_reader_asks_for(disposable: Reading) -> None:
    """Codes, and nothing of any other session."""
    grant = disposable.grant(every=False)
    record = grant.records[0]
    argument, chunks = reading(record.volume_id, record.session), -(-record.size // (1 << 16))
    good = asked(WANT_CHUNKS, 0, min(chunks, MAX_CHUNKS)) + asked(WANT_IDS, 0, chunks)
    frames = serve(disposable, argument, good)
    kinds = [kind for kind, _ in frames]
    status = (KIND_STATUS, Status(Code.OK).build())
    assert kinds[:2] == [KIND_RECORD, KIND_STATUS] and kinds[-2:] == [KIND_IDS, KIND_STATUS]
    assert kinds.count(KIND_CHUNK) == min(chunks, MAX_CHUNKS) and frames[-1] == status
    for sent in (
        asked(WANT_CHUNKS, chunks, 1),
        asked(WANT_CHUNKS, 0, MAX_CHUNKS + 1),
        asked(WANT_CHUNKS, (1 << 64) - 1, 1),
        asked(WANT_IDS, 0, MAX_IDS + 1),
        asked(WANT_IDS, 0, 0),
        asked(3, 0, 1),
        b"x" * ReadRequest.length(),
    ):
        assert serve(disposable, argument, sent + good)[2:] == [
            (KIND_STATUS, Status(Code.BAD_REQUEST).build())
        ]
    assert len(serve(disposable, argument, good[:5])) == 2
    gone = reading(record.volume_id, bytes(16))
    assert serve(disposable, gone, good) == [(KIND_STATUS, Status(Code.NO_SESSION).build())]
    for text in (
        "",
        "x",
        f"../{argument}",
        f"{argument}+x",
        "work+private",
        "--help",
        "--config=/x",
    ):
        frames = serve(disposable, text, b"")
        assert frames == [(KIND_STATUS, Status(Code.BAD_REQUEST).build())]


class Liar:
    """A backup VM that answers with whatever bytes it likes."""

    def __init__(self, folder: Path, answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "answer").write_bytes(answer)
        client = folder / "liar"
        client.write_text(f"#!/bin/sh\ncat {folder / 'answer'}\nexec >&-\ncat >/dev/null\n")
        client.chmod(0o755)
        monkeypatch.setattr(qrexec, "CLIENT", str(client))


def test_a_backup_vm_that_takes_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can answer before it is asked; then what is asked fills all pipes. A process of its
    own that outlives it does not keep them.
    """
    monkeypatch.setattr(spawning, "SEND_BUFFER", 4096)
    ok = frame(KIND_STATUS, Status(Code.OK).build())
    record, ids = frame(KIND_RECORD, bytes(RECORD_SIZE)), frame(KIND_IDS, bytes(32))
    (tmp_path / "answer").write_bytes(record + ok + (ids + ok) * 3600)
    client = tmp_path / "deaf"
    client.write_text(f"#!/bin/sh\ncat {tmp_path / 'answer'}\nsleep 60\n")
    client.chmod(0o755)
    monkeypatch.setattr(qrexec, "CLIENT", str(client))
    monkeypatch.setattr(sealed_reader, "PATIENCE", 0.3)
    reader, begun = SealedReader(BACKUP_VM, bytes(16), bytes(16), 1 << 16), time.monotonic()
    try:
        with pytest.raises(AgentError, match="does not answer"):
            for _ in range(3600):
                reader.ids(0, 1)
        assert time.monotonic() - begun < AT_ONCE
    finally:
        reader.close()


def frame(kind: int, payload: bytes) -> bytes:
    return HEADER.pack(kind, len(payload)) + payload


def test_what_a_hostile_backup_vm_answers(
    disposable: Reading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of one line, no more than asked for is read, and nothing but what dom0 sealed is
    believed.
    """
    grant = disposable.grant()
    first, second = grant.records
    ok, chunks = frame(KIND_STATUS, Status(Code.OK).build()), -(-first.size // (1 << 16))
    real = dict(serve(disposable, reading(first.volume_id, first.session), b""))[KIND_RECORD]
    other = dict(serve(disposable, reading(second.volume_id, second.session), b""))[KIND_RECORD]
    head = frame(KIND_RECORD, real) + ok
    for answer, error in (
        (b"", AgentError),
        (HEADER.pack(KIND_RECORD, (1 << 32) - 1), AgentError),
        (frame(KIND_RECORD, real)[:-1], AgentError),
        (frame(KIND_RECORD, real) + frame(KIND_RECORD, real), AgentError),
        (frame(KIND_STATUS, b"\xff" * Status.length()), AgentError),
        (frame(KIND_STATUS, Status(Code.BUSY).build()), AgentError),
        (frame(KIND_STATUS, Status(Code.OK).build()), AgentError),
        (frame(KIND_RECORD, other) + ok, DamagedError),
        (frame(KIND_RECORD, real[:80] + b"\xff" * 4 + real[84:]) + ok, DamagedError),
        (head + frame(KIND_IDS, b"i" * 32 * chunks) + ok, DamagedError),
        (head + frame(KIND_IDS, bytes(32 * chunks)) + ok, DamagedError),
        (head + frame(KIND_IDS, b"i" * 32 * (chunks - 1)) + ok, AgentError),
        (head + HEADER.pack(KIND_IDS, (1 << 32) - 1), AgentError),
        (head + frame(KIND_STATUS, Status(Code.DAMAGED, detail=3).build()), DamagedError),
        (head, AgentError),
    ):
        Liar(tmp_path, answer, monkeypatch)
        with pytest.raises(error) as caught:
            DistantImage(BACKUP_VM, grant, first, ChunkCache())
        assert "\n" not in str(caught.value)
    (tmp_path / "liar").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(sealed_reader, "PATIENCE", 0.2)
    with pytest.raises(AgentError, match="does not answer"):
        DistantImage(BACKUP_VM, grant, first, ChunkCache())
    monkeypatch.setattr(sealed_reader, "PATIENCE", 60)
    # the right ids, and another's chunk for one
    ids = frame(KIND_IDS, dict(serve(disposable, reading(first.volume_id, first.session),
                asked(WANT_IDS, 0, chunks)))[KIND_IDS])  # fmt: skip
    raw = [ids[5 + at : 37 + at] for at in range(0, len(ids) - 5, 32)]
    number = next(n for n, one in enumerate(raw) if any(one))
    for payload in (
        number.to_bytes(8, "little") + raw[number] + b"\x01" * 100,
        (number + 1).to_bytes(8, "little") + raw[number] + b"\x01" * 100,
        number.to_bytes(8, "little") + b"x" * 32 + b"\x01" * 100,
    ):
        answer = head + ids + ok + ids + ok + frame(KIND_CHUNK, payload) + ok
        Liar(tmp_path, answer, monkeypatch)
        distant = DistantImage(BACKUP_VM, grant, first, ChunkCache())
        with pytest.raises(DamagedError):
            distant.read(number << 16, 1)
        distant.close()
    assert sealed_reader.SERVICE == "Read"
