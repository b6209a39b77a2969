# SPDX-License-Identifier: GPL-2.0-or-later
"""The page in a real browser, by acting as a user does: ``make test-ui``."""

import random
import time
from pathlib import Path

from tests.kit import Site, change
from tests.ui.acting import done, page_sessions, sound, turn_to
from tests.ui.browser import Browser
from tests.ui.conftest import HOSTILE
from tests.ui.server import Page


def test_a_life_of_an_archive_by_acting(page: Page, browser: Browser, site: Site) -> None:
    browser.see("never backed up")
    browser.click("button", "Back up now")
    done(browser, "Backup", 1)
    image = site.image("vault/private")
    first = image.read_bytes()
    change(image, random.Random(2))
    second = image.read_bytes()
    assert first != second
    time.sleep(1.1)  # sessions are named by the second
    browser.write("input", "Note on the new", f"after {HOSTILE}")
    browser.click("form button", "Back up")
    done(browser, "Backup", 2)
    browser.click("form button", "Verify")
    done(browser, "Verify", 1)

    browser.click("nav a", "Time")
    browser.see("1 to 4 of 4 sessions")
    browser.write("input", "Tags of vault", "<script>")
    browser.wait("document.querySelector('main .bad[role=alert]')")
    browser.write("input", "Tags of vault", "before")
    browser.see("Saved.")
    browser.click("button", "Pin vault")
    browser.see("Pinned")
    with_tags = [set(one["tags"]) for one in page_sessions(browser)]
    assert {"before", "keep"} in with_tags
    assert any(HOSTILE in str(one["note"]) for one in page_sessions(browser))
    sound(browser)

    image.write_bytes(first)
    browser.click("button", "Restore … vault")
    browser.see("it is overwritten")
    browser.click("dialog input")
    browser.click("dialog button", "Restore")
    done(browser, "Restore", 1)
    assert image.read_bytes() == second

    total = len(page_sessions(browser))
    browser.click("nav a", "Time")
    browser.write("input", "Newest", "1")
    browser.see("newer than 3d")
    browser.write("input", "Leave what is younger", "0d")
    browser.see("would come free")
    browser.click("button", "Prune …")
    browser.see("This cannot be undone")
    browser.click("dialog input")
    browser.click("dialog button", "Remove them")
    done(browser, "Prune", 1)
    assert len(page_sessions(browser)) < total
    sound(browser)
    assert page.end() == 0
    browser.see("does not answer")


def test_each_page_shows_something_and_fits_a_phone(browser: Browser, tmp_path: Path) -> None:
    browser.click("button", "Back up now")
    done(browser, "Backup", 1)
    for label in ("Space", "Setup", "Work", "Time", "Overview", "Files"):
        browser.size(1200, 800)
        turn_to(browser, label)
        browser.size(390, 844)
        assert browser.js("document.documentElement.scrollWidth") <= 390, label
        unnamed = browser.js(
            "[...document.querySelectorAll('main input, main select, main button')].filter((one) =>"
            " !(one.ariaLabel || one.labels?.length || one.textContent.trim())).length"
        )
        assert unnamed == 0, label
        doubled = "document.querySelectorAll('main > h1, main > .light').length"
        assert browser.js(doubled) == 1, "each page is drawn once"
    browser.size(1200, 800)
    browser.wait("document.querySelectorAll('main select option').length == 2")
    browser.js(
        "(() => { const one = document.querySelector('main select'); one.value = 'work/private';"
        " one.dispatchEvent(new Event('change')); })()"
    )
    browser.see(HOSTILE)
    browser.click("main a", "docs/")
    browser.see("a.txt")
    downloads = tmp_path / "downloads"
    browser.keep_downloads(downloads)
    browser.click("button", "Download a.txt")
    until = time.monotonic() + 10
    while not (downloads / "a.txt").exists():
        assert time.monotonic() < until, browser.faults
        time.sleep(0.05)
    assert (downloads / "a.txt").read_text() == "one"
    browser.click("button", "Versions of a.txt")
    browser.see("Versions of /docs/a.txt")
    sound(browser)
