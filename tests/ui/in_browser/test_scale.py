# SPDX-License-Identifier: GPL-2.0-or-later
"""Ten thousand sessions: no page keeps its user waiting, and none draws more than it shows."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup_vm.archive.opening import open_archive
from bench.scale import build
from tests.conftest import cannot
from tests.kit import Site
from tests.ui.acting import PAGES, sound, turn_to
from tests.ui.browser import Browser
from tests.ui.server import Page

SESSIONS = 10_000
USABLE = 1.0
"""Seconds from turning to a page until it can be used."""
MOST_ELEMENTS = 3_000


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    site = Site(tmp_path / "site", volumes=("big/private",))
    build(tmp_path / "big", SESSIONS + 1000, SESSIONS)
    with open_archive(tmp_path / "big", writing=True) as archive:
        archive.catalog.count()
    chromium = shutil.which("chromium") or cannot("no chromium")
    page = Page(site, archive=tmp_path / "big")
    found = Browser(str(chromium), tmp_path / "profile")
    found.open(page.url)
    yield found
    found.end()
    page.end()


def test_each_page_is_usable_within_a_second(browser: Browser) -> None:
    browser.wait("document.querySelector('.cards')")
    texts = PAGES | {"Time": "1 to 50 of 10,000 sessions"}
    took = {}
    for _ in range(3):
        for page, text in texts.items():
            begun = time.monotonic()
            browser.click("nav a", page)
            browser.see(text)
            elements = browser.js("document.querySelectorAll('*').length")
            assert elements < MOST_ELEMENTS, (page, elements)
            took[page] = min(time.monotonic() - begun, took.get(page, 60.0))
    assert all(seconds < USABLE for seconds in took.values()), took
    turn_to(browser, "Time", "of 10,000 sessions")
    browser.click("button", "Older")
    browser.see("51 to 100 of 10,000 sessions")
    browser.click("button", "Year before")
    browser.wait("document.querySelectorAll('.calendar .level3').length > 300")
    sound(browser)
