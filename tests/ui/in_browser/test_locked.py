# SPDX-License-Identifier: GPL-2.0-or-later
"""An archive that nobody can remove for a time, in a bucket with object lock: the page says until
when, and what comes free when; and which run on another machine holds its lease.
"""

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup_vm.archive.holder import Holder
from backup_vm.archive.storage import open_storage
from tests.conftest import cannot
from tests.kit import GRAIN, Site
from tests.remote.kit import s3_server
from tests.remote.lock_kit import DAYS, client_of, locked_site
from tests.ui.acting import done, sound, turn_to
from tests.ui.browser import Browser
from tests.ui.server import Page


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Three sessions, each with new contents."""
    with s3_server(tmp_path) as server:
        site = locked_site(client_of(server, monkeypatch, tmp_path / "cache"), tmp_path, DAYS)
        for seed in range(3):
            site.image().write_bytes(random.Random(seed).randbytes(20 * GRAIN))
            site.backup()
            time.sleep(1.1)  # sessions are named by the second
        yield site


@pytest.fixture
def browser(site: Site, tmp_path: Path) -> Iterator[Browser]:
    page = Page(site)
    browser = Browser(str(shutil.which("chromium") or cannot("no chromium")), tmp_path / "profile")
    browser.open(page.url)
    yield browser
    browser.end()
    page.end()


def test_the_page_says_what_locks_keep_and_who_is_at_work(browser: Browser, site: Site) -> None:
    until = time.strftime("%Y-%m-%d", time.gmtime(time.time() + DAYS))
    browser.see("locked until then at least: nobody can remove it (30 days, again and again)")
    browser.see(until)
    locks = open_storage(str(site.archive)).locks()
    elsewhere = Holder.this("backup")._replace(machine="another", host="nas", process=77)
    locks.put("writer-9", elsewhere.dump())
    browser.js("import('/page/api.js').then(({post}) => post('refresh'))")
    turn_to(browser, "Space")
    turn_to(browser, "Overview")
    browser.see("Another run is at work on the archive: backup on nas, process 77, since")
    locks.remove("writer-9")
    turn_to(browser, "Time", "1 to 3 of 3 sessions")
    browser.write("input", "Newest", "1")
    browser.write("input", "Part that may go", "100%")
    browser.see("2 sessions that no rule keeps stay for now")
    browser.see("may go after")
    browser.write("input", "Leave what is younger than", "0d")
    browser.see("Everything is locked for 30 days")
    assert f"come free after {until}" in browser.text()
    browser.click("button", "Prune …")
    browser.wait("document.querySelector('dialog').innerText.includes('at the earliest')")
    browser.click("dialog input")
    browser.click("dialog button", "Remove them")
    done(browser, "Prune", 1)
    turn_to(browser, "Overview")
    browser.see("was removed, and comes free after")
    turn_to(browser, "Time", "1 to 1 of 1 session")
    browser.write("input", "Newest", "1")
    browser.see("are locked still, until")
    sound(browser)
