# SPDX-License-Identifier: GPL-2.0-or-later
"""What strangers can do to the server of the page with a socket: nothing that its user notices."""

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.kit import GRAIN, PASSPHRASE, Site, fill
from tests.patience import PATIENCE
from tests.ui.server import Page

pytest.importorskip("aiohttp", reason="the page needs aiohttp")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One for all: nothing here changes the archive."""
    site = Site(tmp_path_factory.mktemp("doors") / "site")
    fill(site.image(), 6 * GRAIN)
    site.backup()
    file = site.root / "pw"
    file.write_bytes(PASSPHRASE)
    found = Page(site, f"--passphrase-file={file}")
    found.enter()
    yield found
    found.process.terminate()
    _, said = found.process.communicate()
    assert found.process.returncode == 0
    assert said == "", "nothing is logged: a log would have addresses, with the token in one"


def sent(page: Page, text: str, seconds: float = 10.0) -> bytes:
    """What comes back for bytes as they are, until the server closes, or nothing comes."""
    with socket.create_connection(("127.0.0.1", page.port), timeout=seconds) as connection:
        connection.sendall(text.encode("latin-1"))
        answer = b""
        try:
            while more := connection.recv(1 << 16):
                answer += more
        except TimeoutError:
            pass
        except ConnectionResetError:
            return answer or b"reset"
        return answer


def head(page: Page, line: str, *more: str, host: str | None = None) -> str:
    """A request with all secrets."""
    lines = [line]
    if host != "":
        lines.append(f"Host: {host or f'127.0.0.1:{page.port}'}")
    lines += [f"{name}: {value}" for name, value in page.headers.items()]
    return "\r\n".join([*lines, *more, "Connection: close", "", ""])


@pytest.mark.parametrize(
    "host",
    ["localhost:{}", "127.0.0.1", "[::1]:{}", "127.0.0.1.:{}", "127.1:{}", "evil.example", ""],
)
def test_a_name_that_was_pointed_here_is_of_no_use(page: Page, host: str) -> None:
    said = sent(page, head(page, "GET /api/names HTTP/1.1", host=host.format(page.port)))
    assert b" 403 " in said or b" 400 " in said, said
    assert b"work/private" not in said


def test_a_header_that_comes_twice_is_none(page: Page) -> None:
    own = f"127.0.0.1:{page.port}"
    for more in (f"Host: {own}", "Host: evil.example", "Origin: http://evil.example"):
        said = sent(page, head(page, "GET /api/names HTTP/1.1", more, f"Origin: http://{own}"))
        assert b" 403 " in said or b" 400 " in said, said


def test_no_path_leads_out_of_the_page(page: Page) -> None:
    for path in (
        *(
            "/page/../../server.py",
            "/page/%2e%2e/server.py",
            "/page/..%2fserver.py",
            "//etc/passwd",
        ),
        *(
            "/page/",
            "/page",
            "/.",
            "/download/",
            "/download/../../api/names",
            "/page/app.js%00.html",
        ),
        *("/page/\\..\\server.py", "/api", "/api/", "/API/names", "/enter/../"),
    ):
        said = sent(page, head(page, f"GET {path} HTTP/1.1"))
        assert b" 404 " in said or b" 403 " in said or b" 400 " in said, (path, said)
        assert b"import" not in said and b"root:" not in said


def test_every_answer_has_the_headers_that_keep_it_here(page: Page) -> None:
    asked = [("GET", "/", {}), ("GET", "/nothing", page.headers), ("GET", "/", page.headers)]
    asked += [("GET", "/api/names", page.headers), ("GET", "/enter?token=x", {})]
    asked += [("GET", "/download/x", page.headers), ("PUT", "/", page.headers)]
    for method, path, headers in asked:
        connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=PATIENCE)
        connection.request(method, path, None, headers)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        assert answer.headers["Referrer-Policy"] == "no-referrer", (method, path)
        assert answer.headers["Cache-Control"] == "no-store"
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_no_other_way_of_asking_is_answered(page: Page) -> None:
    upgrade = (
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: " + "A" * 22 + "==",
    )
    evil = (*upgrade, "Origin: http://evil.example")
    assert b" 403 " in sent(page, head(page, "GET /api/news?since=0 HTTP/1.1", *evil))
    assert b" 101 " not in sent(page, head(page, "GET /api/names HTTP/1.1", *upgrade))
    stream = head(page, "GET /api/news?since=0 HTTP/1.1", "Accept: text/event-stream")
    without = "\r\n".join(line for line in stream.split("\r\n") if "X-Sparsebak" not in line)
    assert b" 403 " in sent(page, without), "an EventSource cannot send the key"
    for method in ("HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT"):
        said = sent(page, head(page, f"{method} / HTTP/1.1"))
        assert b" 200 " not in said, (method, said)


def test_a_body_is_not_taken_to_any_length(page: Page) -> None:
    own = f"Origin: http://127.0.0.1:{page.port}"
    post = head(page, "POST /api/files HTTP/1.1", own, "Content-Type: application/json")
    huge = post.replace("\r\n\r\n", f"\r\nContent-Length: {1 << 40}\r\n\r\n", 1)
    begun = time.monotonic()
    said = sent(page, huge + "x" * (1 << 20))
    assert b" 413 " in said or said == b"reset", said
    assert time.monotonic() - begun < 15
    for body in ("[" * 60_000, '{"a":' * 10_000, '{"volume": "\\ud800"}', "{}x", "null", ""):
        status, text = page.ask("POST", "/api/files", post_headers(page), body.encode())
        assert status == 400 and "errors" in json.loads(text), (body[:20], status)


def post_headers(page: Page) -> dict[str, str]:
    own = f"http://127.0.0.1:{page.port}"
    return page.headers | {"Content-Type": "application/json", "Origin": own}


def test_who_says_nothing_keeps_nobody_away(page: Page) -> None:
    """Slow requests by the hundred, of this user even."""
    slow = []
    try:
        for _ in range(200):
            connection = socket.create_connection(("127.0.0.1", page.port), timeout=PATIENCE)
            slow.append(connection)
            with suppress(OSError):
                connection.sendall(b"GET / HTTP/1.1\r\nHo")
        until = time.monotonic() + PATIENCE
        while len(os.listdir(f"/proc/{page.process.pid}/fd")) > 100:
            assert time.monotonic() < until, "connections are limited"
            time.sleep(0.1)
        while True:
            try:
                if page.ask("GET", "/api/here", page.headers)[0] == 200:
                    break
            except OSError:
                assert time.monotonic() < until, "they are let go after five seconds"
            time.sleep(0.2)
    finally:
        for connection in slow:
            connection.close()


def of_processes(pid: int) -> Iterator[bytes]:
    """Command lines and environments of a process and all that it started. Others belong to tests
    that run at the same time.
    """
    process = Path(f"/proc/{pid}")
    with suppress(OSError):
        yield (process / "cmdline").read_bytes()
        yield (process / "environ").read_bytes()
        for children in process.glob("task/*/children"):
            for child in children.read_text().split():
                yield from of_processes(int(child))


def test_nothing_secret_is_seen_of_the_processes(page: Page) -> None:
    """Command lines and environments: those can be read by others, or by all of this user's."""
    secrets = [value.encode() for value in page.headers.values()]
    secrets = [one.rpartition(b"=")[2] for one in secrets] + [PASSPHRASE, page.url.encode()[-40:]]
    assert page.post("/api/key", {"passphrase": PASSPHRASE.decode()})[0] == 200
    for _ in range(2):
        page.post("/api/refresh", {})
        asking = threading.Thread(target=page.get, args=("/api/names",))
        asking.start()
        time.sleep(0.1)
        seen = [*of_processes(page.process.pid)]
        assert any(b"sparsebak" in one or b"backup_vm" in one for one in seen)
        assert not [one for one in seen if any(secret in one for secret in secrets)]
        asking.join()


def test_a_download_works_once_whole_and_under_its_own_name(page: Page, tmp_path: Path) -> None:
    evil = 'a"; x=\r\nSet-Cookie: x=1;\u202egnp\x00.exe'.replace("\x00", "")
    asked = {"volume": "work/private", "session": "latest", "path": f"/{evil}"}
    link = str(page.post("/api/ticket", asked)[1]["link"])
    own = head(page, f"GET {link} HTTP/1.1", "Range: bytes=0-3")
    assert b" 404 " in sent(page, own), "parts are not sent"
    said = sent(page, head(page, f"GET {link} HTTP/1.1"))
    assert b" 409 " in said and b"Set-Cookie: x" not in said.partition(b"\r\n\r\n")[0], said
    assert b" 404 " in sent(page, head(page, f"GET {link} HTTP/1.1")), "once"
    outcome = page.post("/api/outcome", {"link": link})[1]
    assert outcome["ended"] and outcome["errors"]
    without = {key: value for key, value in page.headers.items() if key != "Cookie"}
    link = str(page.post("/api/ticket", asked)[1]["link"])
    assert page.ask("GET", link, without)[0] == 403
