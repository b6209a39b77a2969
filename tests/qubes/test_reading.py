# SPDX-License-Identifier: GPL-2.0-or-later
"""A disposable reads a granted session from the backup VM: through qrexec's stand-in, the policy
and the service, as processes.
"""

import contextlib
import io
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup_vm import cli
from backup_vm.agent import sealed_reader
from backup_vm.agent.transport import qrexec
from backup_vm.errors import AgentError, DamagedError, SparsebakError
from backup_vm.jobs import serving
from backup_vm.jobs.distant_image import DistantImage
from backup_vm.jobs.lazy_image import ChunkCache
from backup_vm.jobs.mount import SessionFiles, shown_from
from dom0_agent.admin import cli as agent_cli
from dom0_agent.admin.granting import find, make, read_records
from dom0_agent.config import load
from tests.conftest import cannot
from tests.kit import change
from tests.qubes.kit import BACKUP_VM, QubesSite
from wire.grants import Grant
from wire.messages import HEADER, KIND_CHUNK, KIND_IDS, KIND_RECORD, KIND_STATUS, Status
from wire.reading import MAX_CHUNKS, MAX_IDS, WANT_CHUNKS, WANT_IDS, ReadRequest, reading
from wire.status import Code

BIN = Path(sys.executable).parent
HERE = Path(__file__).parent


class Reading:
    """The site, and disp1, which qrexec's stand-in lets call as it is tagged."""

    def __init__(self, site: QubesSite, monkeypatch: pytest.MonkeyPatch) -> None:
        self.site, self.log = site, site.root / "calls"
        config, program = site.root / "config.toml", site.root / "sparsebak"
        config.write_text(f'archive = "{site.archive}"\n')
        program.write_text(f'#!/bin/sh\nexec {BIN}/sparsebak --config {config} "$@"\n')
        settings, self.client = site.root / "qrexec.json", site.root / "client"
        known = {"qubesd": str(site.qubesd.socket), "config": str(site.config), "yes": True}
        known |= {"python": sys.executable, "sparsebak": str(program), "source": "disp1"}
        settings.write_text(json.dumps({**known, "log": str(self.log)}))
        self.client.write_text(
            f'#!/bin/sh\nexec {sys.executable} {HERE / "qrexec_client.py"} {settings} "$@"\n'
        )
        for script in (program, self.client):
            script.chmod(0o755)
        monkeypatch.setattr(qrexec, "CLIENT", str(self.client))
        site.qubesd.qubes[BACKUP_VM].tags.add("sparsebak-vm")
        self.tag()

    def tag(self) -> None:
        self.site.qubesd.qubes["disp1"].tags.add("sparsebak-reader")

    def untag(self) -> None:
        self.site.qubesd.qubes["disp1"].tags.discard("sparsebak-reader")

    def grant(self, name: str = "work", every: bool = True) -> Grant:
        of, path = find(load(self.site.config), name, None), self.site.root / "records"
        path.unlink(missing_ok=True)
        words = ["--config", str(self.site.root / "config.toml"), "records", of.volume_id.hex()]
        assert cli.main([*words, "-o", str(path)]) == 0
        return make(of, read_records(io.BytesIO(path.read_bytes()), "it"), (), every)


@pytest.fixture
def site(qubes: QubesSite) -> QubesSite:
    assert agent_cli.main(["--config", str(qubes.config), "setup", BACKUP_VM]) == 0
    qubes.backup()
    change(qubes.image(), random.Random(1), resize=False)
    qubes.backup()
    return qubes


@pytest.fixture
def disposable(site: QubesSite, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reading]:
    yield Reading(site, monkeypatch)


def test_images_are_read_whole_and_in_pieces(
    disposable: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = list(disposable.site.images().values())
    grant, said = disposable.grant(), list[str]()
    files = SessionFiles(shown_from(BACKUP_VM, grant), said.append)
    names = [name for name in files.readdir("/", 0) if name.endswith(".img")]
    assert len(names) == len(images) == 2
    for name, image in zip(names, images, strict=True):
        assert files.getattr("/" + name)["st_size"] == len(image)
        found = b"".join(
            files.read("/" + name, 77_777, at, 0) for at in range(0, len(image), 77_777)
        )
        assert found == image and not said
    for opened in files._images.values():
        assert isinstance(opened, DistantImage)
        opened.close()
    calls = disposable.log.read_text().splitlines()
    first = grant.records[0]
    wanted = f"sparsebak.Read+{reading(first.volume_id, first.session)}"
    assert calls[0] == f"allow {BACKUP_VM} {wanted}" and len(calls) == 2
    # when the tag is gone, so is the way
    disposable.untag()
    with pytest.raises(SparsebakError, match="policy refused"):
        DistantImage(BACKUP_VM, grant, first, ChunkCache())


def test_a_mount_from_the_backup_vm(disposable: Reading) -> None:
    """As a user of the disposable goes: FUSE, with the grant on standard input."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        cannot("there is no /dev/fuse to use")
    images, folder = disposable.site.images(), disposable.site.root / "mounted"
    folder.mkdir()
    code = "import sys; from backup_vm import cli; from backup_vm.agent.transport import qrexec; "
    code += f"qrexec.CLIENT = {str(disposable.client)!r}; sys.exit(cli.main(sys.argv[1:]))"
    words = ["mount", "work/private", folder, "--grant", "-", "--from", BACKUP_VM]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(disposable.grant().build())
        process.stdin.close()
        deadline = time.monotonic() + 30
        while not os.path.ismount(folder):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        try:
            found = {path.stem: path.read_bytes() for path in folder.iterdir()}
        finally:
            process.terminate()
        assert process.wait(20) == 0, process.stderr.read()
    assert found == images and not os.path.ismount(folder)


def test_the_options_of_a_mount_from_there(
    disposable: Reading, capsys: pytest.CaptureFixture[str]
) -> None:
    (disposable.site.root / "empty").mkdir()
    grant = disposable.site.root / "grant"
    grant.write_bytes(disposable.grant().build())
    capsys.readouterr()
    for words, code in (
        (("work/private", "--from", BACKUP_VM), 2),
        (("work/private", "--from", "no/name", "--grant", str(grant)), 2),
        (("vault/private", "--from", BACKUP_VM, "--grant", str(grant)), 12),
    ):
        assert cli.main(["mount", words[0], str(grant.with_name("empty")), *words[1:]]) == code
        assert capsys.readouterr().err.count("\n") == 1


def test_it_hangs_up_and_is_called_again(disposable: Reading) -> None:
    """Without a reader who asks, the archive is free for others."""
    image = list(disposable.site.images().values())[-1]
    grant = disposable.grant(every=False)
    distant = DistantImage(BACKUP_VM, grant, grant.records[0], ChunkCache(0))
    connection = distant._reader._connection
    assert connection is not None
    connection.process.kill()
    connection.process.wait()
    assert distant.read(0, 10_000) == image[:10_000]
    distant.close()


def test_a_silent_reader_is_left(disposable: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    grant, code = disposable.grant(every=False), "import sys; from backup_vm import cli; "
    code += "from backup_vm.jobs import serving; serving.IDLE = 0.3; sys.exit(cli.main())"
    argument = reading(grant.volume_id, grant.records[0].session)
    words = ["--config", str(disposable.site.root / "config.toml"), "serve", argument]
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        begun = time.monotonic()
        assert process.wait(20) == 1 and time.monotonic() - begun < 20
    assert serving.IDLE == 60


def test_a_reader_that_takes_nothing_is_left(disposable: Reading) -> None:
    """The process, too, ends: what it still had to say is for nobody."""
    grant, code = disposable.grant(every=False), "import sys; from backup_vm import cli; "
    code += "from backup_vm.jobs import serving; serving.IDLE = 0.3; sys.exit(cli.main())"
    argument = reading(grant.volume_id, grant.records[0].session)
    words = ["--config", str(disposable.site.root / "config.toml"), "serve", argument]
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        chunks = -(-grant.records[0].size // (1 << 16))
        for _ in range(1000):
            process.stdin.write(asked(WANT_IDS, 0, chunks))
        with contextlib.suppress(BrokenPipeError):
            process.stdin.flush()
        try:
            assert process.wait(10) == 1
        finally:
            process.kill()


def test_readers_give_way_to_a_backup(disposable: Reading) -> None:
    """Who asks again and again, in two calls at a time, keeps nobody from writing."""
    grant, site = disposable.grant(every=False), disposable.site
    words = [BIN / "sparsebak", "--config", site.root / "config.toml", "serve"]
    words.append(reading(grant.volume_id, grant.records[0].session))
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            with subprocess.Popen(
                words, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as process:
                assert process.stdin is not None and process.stdout is not None
                with contextlib.suppress(BrokenPipeError):
                    while process.stdout.read(4096) and not over.is_set():
                        process.stdin.write(asked(WANT_IDS, 0, 1))

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        time.sleep(1)  # until both read
        with site.open(True) as archive:
            assert archive.writing
    finally:
        over.set()
        for asker in askers:
            asker.join()


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


def asked(wanted: int, first: int, count: int) -> bytes:
    return ReadRequest(wanted=wanted, first=first, count=count).build()


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
