# SPDX-License-Identifier: GPL-2.0-or-later
"""Who gets an answer from the server of the page, at a real socket."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import cannot
from tests.kit import GRAIN, PASSPHRASE, Site, fill
from tests.ui.server import Page


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


@pytest.fixture
def page(site: Site) -> Iterator[Page]:
    fill(site.image(), 6 * GRAIN)
    file = site.root / "pw"
    file.write_bytes(PASSPHRASE)
    pytest.importorskip("aiohttp", reason="the page needs aiohttp")
    found = Page(site, f"--passphrase-file={file}")
    yield found
    if found.process.poll() is None:
        found.end()


def test_only_the_page_that_was_opened_gets_an_answer(page: Page) -> None:
    assert page.ask("GET", "/", {})[0] == 403
    assert page.ask("GET", "/enter?token=guessed", {})[0] == 403
    page.enter()
    assert "HttpOnly" in page.cookie and "SameSite=Strict" in page.cookie
    assert page.ask("GET", page.path, {})[0] == 403, "the token works once"
    good = page.headers
    assert page.ask("GET", "/", good)[0] == 200
    assert "script-src 'self'" in page.policy and "unsafe" not in page.policy
    for bad in (
        {"Cookie": good["Cookie"]},
        {"X-Sparsebak-Key": good["X-Sparsebak-Key"]},
        good | {"Host": "rebound.example"},
        good | {"Origin": "http://rebound.example"},
        good | {"Sec-Fetch-Site": "same-site"},
    ):
        assert page.ask("GET", "/api/news?since=0", bad)[0] == 403, bad
    backup = {"kind": "backup"}
    own = f"http://127.0.0.1:{page.port}"
    for more in ({"Content-Type": "application/json"}, {"Origin": own}):
        assert page.ask("POST", "/api/jobs", good | more, backup)[0] == 403, more
    assert page.ask("GET", "/page/../server.py", good)[0] == 404
    assert page.end() == 0


def test_another_user_of_the_machine_gets_no_answer_even_with_the_secrets(page: Page) -> None:
    if os.geteuid() != 0:
        cannot("becoming another user needs root")
    page.enter()
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        status = 403
        with suppress(OSError):  # the connection itself is closed
            status = page.ask("GET", "/", page.headers)[0]
        os._exit(int(status != 403))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert page.ask("GET", "/", page.headers)[0] == 200, "and this one does"


def test_a_signal_ends_it_while_it_starts_to_read(page: Page) -> None:
    page.enter()  # which starts three commands
    assert page.end() == 0


def test_what_the_page_asks_for_is_done_by_the_commands(page: Page, site: Site) -> None:
    page.enter()
    for kind in ("backup", "verify"):
        assert page.post("/api/jobs", {"kind": kind})[0] == 200
    assert page.post("/api/jobs", {"kind": "unlock"})[0] == 400
    assert page.post("/api/jobs", {"kind": "restore", "volume": "a", "session": "s"})[0] == 400
    revision = 0
    jobs: dict[int, dict[str, object]] = {}
    while not jobs or any(job["ended"] is None for job in jobs.values()):
        news = page.get(f"/api/news?since={revision}")
        revision = int(str(news["revision"]))
        jobs |= {job["id"]: job for job in news["jobs"]}  # type: ignore[attr-defined]
    assert [job["state"] for job in jobs.values()] == ["done", "done"], jobs
    found = page.get("/api/sessions")
    assert found["total"] == 1
    (session,) = found["sessions"]  # type: ignore[misc]
    hostile = "<img src=x onerror=alert(1)>"
    asked = {"volume": "work/private", "session": session["id"], "add": ["keep"], "note": hostile}
    assert page.post("/api/tag", asked)[0] == 200
    (session,) = page.get("/api/sessions?tag=keep")["sessions"]  # type: ignore[misc]
    assert session["note"] == hostile
    plan = page.post("/api/simulate", {"keep_last": "1", "keep_tag": ["keep"]})[1]
    assert plan["removed"] == [] and plan["dry_run"]
    code, said = page.post("/api/simulate", {"keep_within": "--yes"})
    assert code == 409 and "not a length of time" in str(said["errors"])
    assert page.get("/api/status")["pins"] == "none"
    assert page.get("/api/space")["growth"]
    assert len(page.get("/api/moment?time=1")["volumes"]) == 1  # type: ignore[arg-type]
    assert Path(site.archive).exists()
