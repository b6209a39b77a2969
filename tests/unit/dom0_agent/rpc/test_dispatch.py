# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls as qrexec makes them: who may ask for what, and what a refused call leaves behind."""

import errno
import io
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0_agent.config import load
from dom0_agent.keyring import Keyring
from dom0_agent.rpc import dispatch, streams
from dom0_agent.rpc.heads import SERVICES
from tests.kit import Site, change, fill
from wire.messages import HEADER, HEADER_SIZE, KIND_STATUS, Request, Status
from wire.status import Code
from wire.stream import CutShort, read_exactly

SIZE = 20 * 65536


def call(
    site: Site,
    name: str,
    stdin: bytes,
    caller: str = "backup-vm",
    target: str | None = "work",
    argument: str = "private",
) -> Code:
    if (name, argument) == ("Restore", "private"):
        argument = f"{target or 'dom0'}+private+20260101-000000"
    environ = {
        "QREXEC_REMOTE_DOMAIN": caller,
        "QREXEC_SERVICE_ARGUMENT": argument,
        "QREXEC_REQUESTED_TARGET_TYPE": "name",
    }
    environ["QREXEC_REQUESTED_TARGET"] = target or "dom0"
    out = io.BytesIO()
    dispatch.run(name, environ, site.config, io.BytesIO(stdin), out)
    raw, status = out.getvalue(), None
    while raw:
        kind, length = HEADER.unpack(raw[:HEADER_SIZE])
        payload, raw = raw[HEADER_SIZE : HEADER_SIZE + length], raw[HEADER_SIZE + length :]
        assert status is None, "nothing may follow the status"
        status = Status.parse(payload) if kind == KIND_STATUS else None
    assert status is not None
    return Code(status.code)


def archive_id(site: Site) -> bytes:
    return next(iter(Keyring(load(site.config).state_dir))).id


def kept(site: Site) -> dict[str, bytes]:
    files = [
        p
        for folder in (site.pool, site.state)
        for p in folder.rglob("*")
        if p.is_file() and p.name != "lock"
    ]
    return {str(p): p.read_bytes() for p in files}


@pytest.fixture
def ready(site: Site) -> Site:
    fill(site.image(), SIZE)
    site.backup()
    change(site.image(), random.Random(1), resize=False)
    return site


NEEDS_ARCHIVE = [name for name in SERVICES if name != "Enroll"]


@pytest.mark.parametrize("name", NEEDS_ARCHIVE)
def test_another_qubes_archive_looks_like_none(ready: Site, name: str) -> None:
    before = kept(ready)
    assert (
        call(ready, name, Request(archive=archive_id(ready)).build(), caller="evil")
        == Code.NO_ARCHIVE
    )
    assert call(ready, name, Request(archive=b"?" * 16).build()) == Code.NO_ARCHIVE
    assert kept(ready) == before


def test_enroll_is_for_the_caller_named_in_dom0(ready: Site) -> None:
    assert call(ready, "Enroll", Request(label="tests").build(), target=None) == Code.OK
    assert (
        call(ready, "Enroll", Request(label="tests").build(), target=None, caller="evil")
        == Code.NO_ARCHIVE
    )
    assert call(ready, "Enroll", Request(label="other").build(), target=None) == Code.NO_ARCHIVE
    assert call(ready, "Enroll", Request(label="../x").build(), target=None) == Code.BAD_REQUEST


@pytest.mark.parametrize("name", ["Monitor", "Snapshot", "Extract", "Commit", "Abort"])
@pytest.mark.parametrize(
    ("target", "argument"), [("vault", "private"), ("work", "root"), (None, "private")]
)
def test_only_volumes_of_the_catalog(
    ready: Site, name: str, target: str | None, argument: str
) -> None:
    before = kept(ready)
    assert (
        call(
            ready,
            name,
            Request(archive=archive_id(ready)).build(),
            target=target,
            argument=argument,
        )
        == Code.NO_VOLUME
    )
    assert kept(ready) == before


@pytest.mark.parametrize("argument", ["../../etc", "a b", "-x", "x" * 100, "private\n", "pri+vate"])
def test_names_that_need_changing_are_refused(ready: Site, argument: str) -> None:
    assert (
        call(ready, "Snapshot", Request(archive=archive_id(ready)).build(), argument=argument)
        == Code.BAD_REQUEST
    )


@pytest.mark.parametrize("name", ["Extract", "Commit", "Abort"])
def test_an_unknown_session_is_refused(ready: Site, name: str) -> None:
    before = kept(ready)
    assert (
        call(ready, name, Request(archive=archive_id(ready), session=b"x" * 16).build())
        == Code.NO_SESSION
    )
    assert kept(ready) == before


def test_what_was_not_extracted_cannot_be_committed(ready: Site) -> None:
    with ready.open() as archive:
        offer = ready.agent(archive).snapshot(
            "work",
            "private",
            archive.newest(ready.listed(archive)[0].volume_id.hex()).clear.session,
            1,
            0,
        )  # type: ignore[union-attr]
    request = Request(archive=archive_id(ready), session=offer.session).build()
    assert call(ready, "Commit", request) == Code.INCOMPLETE
    assert call(ready, "Extract", request) == Code.OK
    assert call(ready, "Commit", request) == Code.OK
    assert call(ready, "Commit", request) == Code.OK, "an answer may get lost"
    assert call(ready, "Abort", request) == Code.NO_SESSION


@pytest.mark.parametrize("name", SERVICES)
@given(raw=st.binary(max_size=300))
def test_noise_is_refused(tmp_path_factory: pytest.TempPathFactory, name: str, raw: bytes) -> None:
    site = _noise_site(tmp_path_factory)
    before = kept(site)
    assert call(site, name, raw) in (Code.BAD_REQUEST, Code.NO_ARCHIVE)
    assert kept(site) == before


_SITES: list[Site] = []


def _noise_site(factory: pytest.TempPathFactory) -> Site:
    if not _SITES:
        _SITES.append(Site(factory.mktemp("noise") / "site"))
    return _SITES[0]


def test_a_broken_configuration_says_nothing_to_the_caller(ready: Site) -> None:
    ready.config.write_text("state_dir = ")
    assert call(ready, "List", Request(archive=bytes(16)).build()) == Code.INTERNAL


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errno.ENOSPC, Code.NO_SPACE),
        (errno.EDQUOT, Code.NO_SPACE),
        (errno.EIO, Code.INTERNAL),
        (errno.EROFS, Code.INTERNAL),
    ],
)
@pytest.mark.parametrize("name", ["pwrite", "fsync", "replace", "open"])
def test_a_state_that_cannot_be_written_is_one_line_and_a_code(
    ready: Site,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    error: int,
    code: Code,
) -> None:
    before, real = kept(ready), getattr(os, name)

    def fail(first: Any, *rest: Any, **named: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first)
        if path.startswith(str(ready.state)) and (name != "open" or rest[0] & os.O_CREAT):
            raise OSError(error, os.strerror(error), path)
        return real(first, *rest, **named)

    capsys.readouterr()
    with monkeypatch.context() as broken:
        broken.setattr(os, name, fail)
        assert call(ready, "Snapshot", Request(archive=archive_id(ready)).build()) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert "Traceback" not in last and os.strerror(error) in last
    after = kept(ready)
    state = next(path for path in before if path.endswith("state.json"))
    assert after[state] == before[state]
    ready.backup()
    assert list(ready.images().values())[-1] == ready.contents()


def test_a_vanished_image_leaves_no_snapshot(ready: Site) -> None:
    os.unlink(ready.image())
    before = ready.snapshots()
    assert call(ready, "Snapshot", Request(archive=archive_id(ready)).build()) == Code.SOURCE_FAILED
    assert ready.snapshots() == before


def test_a_symbolic_link_is_not_followed(ready: Site, tmp_path: Path) -> None:
    os.unlink(ready.image())
    secret = tmp_path / "secret"
    secret.write_text("secret")
    ready.image().symlink_to(secret)
    assert call(ready, "Snapshot", Request(archive=archive_id(ready)).build()) == Code.SOURCE_FAILED


@given(st.binary(max_size=3000), st.lists(st.integers(1, 700), max_size=20), st.integers(1, 512))
def test_what_comes_is_read_whatever_is_asked_for_at_a_time(
    data: bytes, sizes: list[int], block: int
) -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, data)
        os.close(writing)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(streams, "BLOCK", block)
            reader, got = streams.PatientReader(reading), b""
            for size in sizes:
                wanted = min(size, len(data) - len(got))
                got += read_exactly(reader, wanted) if wanted else b""
            assert got == data[: len(got)]
            assert b"".join(iter(lambda: reader.read(100), b"")) == data[len(got) :]
    finally:
        os.close(reading)


def test_a_caller_that_left_with_something_unread_has_ended_its_stream() -> None:
    """The kernel says ECONNRESET then, where a socket that was read to its end says nothing."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"an answer")
        theirs.sendall(b"ab")
        theirs.close()
        reader = streams.PatientReader(ours.fileno())
        assert bytes(reader.read(2)) == b"ab"
        with pytest.raises(CutShort):
            read_exactly(reader, 1)


CLOSED = ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-", ">/dev/full", ">/dev/full 2>/dev/full"]


@pytest.mark.parametrize("how", CLOSED)
def test_no_file_of_ours_is_taken_for_the_callers_stream(ready: Site, how: str) -> None:
    """Where a standard stream is closed, the next file that is opened gets its number."""
    service = Path(dispatch.__file__).with_name("run-service")
    (ready.root / "request").write_bytes(Request(archive=archive_id(ready)).build())
    environ = {
        "SPARSEBAK_LIB": str(service.parent.parent.parent),
        "SPARSEBAK_AGENT_CONFIG": str(ready.config),
        "SPARSEBAK_PYTHON": sys.executable,
        "QREXEC_REMOTE_DOMAIN": "backup-vm",
        "QREXEC_REQUESTED_TARGET_TYPE": "keyword",
        "QREXEC_REQUESTED_TARGET_KEYWORD": "adminvm",
    }
    command = f'exec "{service}" List <"{ready.root}/request" {how}'
    ended = subprocess.run(["sh", "-c", command], env=environ, capture_output=True)
    assert ended.returncode in ((0,) if how == "2>&-" else (1, 120))
    # The status is the last frame, where the caller's stream is there.
    assert ">" in how.replace("2>", "") or ended.stdout[-17:-12] == b"\0\x0c\0\0\0"
    assert ended.stderr.count(b"\n") <= 2 and b"Traceback" not in ended.stderr
    for path in (ready.state / "calls").iterdir():
        assert path.read_bytes() == b"", path.name
