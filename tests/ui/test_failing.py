# SPDX-License-Identifier: GPL-2.0-or-later
"""The server where descriptors run out, and whoever talks to it sends what is no request, or goes
in the middle of an answer: it continues, and no traceback comes to the terminal.
"""

import asyncio
import http.client
import random
import resource
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup_vm.ui.program import Program
from backup_vm.ui.queue import Queue
from backup_vm.ui.reads import Reads
from tests.conftest import cannot
from tests.kit import PASSPHRASE, Site
from tests.patience import PATIENCE
from tests.ui.server import Page


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


@pytest.fixture
def page(site: Site) -> Iterator[Page]:
    pytest.importorskip("aiohttp", reason="the page needs aiohttp")
    mke2fs = shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin") or cannot("no mke2fs")
    tree = site.root / "tree"
    tree.mkdir()
    (tree / "large").write_bytes(random.Random(1).randbytes(6 << 20))
    words = [mke2fs, "-q", "-F", "-t", "ext4", "-d", tree, site.image(), "12M"]
    subprocess.run(words, check=True)
    site.backup()
    file = site.root / "pw"
    file.write_bytes(PASSPHRASE)
    found = Page(site, f"--passphrase-file={file}")
    yield found
    if found.process.poll() is None:
        found.end()


GARBAGE = (
    b"\0\xff\n\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nno header\r\n\r\n",
    b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    b"POST /api/jobs HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
)


def complaints(page: Page) -> str:
    """All that it wrote to the terminal, until it ended as told."""
    page.process.send_signal(2)
    _, err = page.process.communicate(timeout=PATIENCE)
    assert page.process.returncode == 0
    return str(err)


def go_in_the_middle(page: Page) -> None:
    """Begin a download, and ask for something, and be gone before the end."""
    asked = {"volume": "work/private", "session": "latest", "path": "/large"}
    for path in (page.post("/api/ticket", asked)[1]["link"], "/api/status"):
        connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=PATIENCE)
        connection.request("GET", str(path), headers=page.headers)
        if path != "/api/status":
            assert len(connection.getresponse().read(1000)) == 1000
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


def test_what_is_no_request_shows_nothing_nor_does_whoever_goes_in_the_middle(page: Page) -> None:
    page.enter()
    go_in_the_middle(page)
    for raw in GARBAGE:
        with socket.create_connection(("127.0.0.1", page.port), PATIENCE) as one:
            one.sendall(raw)
            one.shutdown(socket.SHUT_WR)
            one.settimeout(PATIENCE)
            while one.recv(1 << 16):
                pass
    assert page.get("/api/names") == {"volumes": ["work/private"]}
    assert complaints(page) == ""


def test_whoever_has_many_connections_keeps_nothing_from_being_done(page: Page) -> None:
    page.enter()
    resource.prlimit(page.process.pid, resource.RLIMIT_NOFILE, (60, 60))
    held = []
    for _ in range(120):
        one = socket.socket()
        one.settimeout(0.2)
        try:
            one.connect(("127.0.0.1", page.port))
        except OSError:
            one.close()
            break
        held.append(one)
    time.sleep(0.3)
    for one in held:
        one.close()
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            status, _ = page.ask("GET", "/api/names", page.headers)
        except OSError:
            status = 0
        if status == 200:
            break
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert complaints(page) == ""


@pytest.mark.parametrize("which", ["pipe", "child"])
def test_work_that_cannot_be_started_keeps_no_other_waiting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, which: str
) -> None:
    async def two() -> list[str]:
        program = Program(("--archive=/nowhere",))
        queue = Queue(program, Reads(program))
        with monkeypatch.context() as patched:
            if which == "pipe":
                patched.setattr("os.pipe", _no_descriptors)
            else:
                patched.setattr(asyncio, "create_subprocess_exec", _no_child)
            first = await queue.add("list", {}, ("list",))
            working = asyncio.ensure_future(queue.run())
            while not first.over:
                await asyncio.sleep(0.01)
        second = await queue.add("status", {}, ("status",))
        while not second.over:
            await asyncio.sleep(0.01)
            assert not working.done()
        working.cancel()
        return [*first.log, str(second.code)]

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    told, code = asyncio.run(asyncio.wait_for(two(), PATIENCE))
    assert "Too many open files" in told and code == "10"


def _no_descriptors() -> tuple[int, int]:
    raise OSError(24, "Too many open files")


async def _no_child(*_: object, **__: object) -> None:
    _no_descriptors()
