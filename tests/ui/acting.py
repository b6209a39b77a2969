# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of the page ask of a browser."""

import json
import time
from pathlib import Path

from tests.ui.browser import PATIENCE, Browser

REFUSED = ("status of 409", "ERR_INTERNET_DISCONNECTED")
"""What the page shows, and the browser logs as an error, too: a command's refusal, and that there
is no answer.
"""


def done(browser: Browser, kind: str, count: int, patience: float = PATIENCE) -> None:
    """Wait until so many pieces of work of a kind are done."""
    browser.wait(
        "[...document.querySelectorAll('.job[data-state=done]')]"
        f".filter((one) => one.ariaLabel.startsWith({json.dumps(kind)})).length == {count}",
        patience,
    )


def sound(browser: Browser) -> None:
    """Nothing went wrong within the page: no exception, no violation of the policy, no dialog."""
    assert [one for one in browser.faults if not any(said in one for said in REFUSED)] == []
    assert browser.js("document.querySelector('main img')") is None


PAGES = {
    "Overview": "checks without a finding",
    "Time": "1 to 2 of 2 sessions",
    "Work": "Which volumes",
    "Files": "Search names here",
    "Space": "What takes the space",
    "Setup": "The recovery key opens it",
}
"""Each page, and what it says when it has looked, with a session of each of two volumes."""


def turn_to(browser: Browser, page: str, text: str = "") -> None:
    """Go to a page, and wait until it has looked, and says a text."""
    browser.click("nav a", page)
    browser.see(text or PAGES[page])
    browser.wait("!document.querySelector('main').innerText.includes('Looking …')")


def page_sessions(browser: Browser) -> list[dict[str, object]]:
    """Sessions as the page is told them."""
    found: list[dict[str, object]] = browser.js(
        "import('/page/api.js').then(({get}) => get('sessions')).then((row) => row.sessions)"
    )
    return found


def files_of(browser: Browser, volume: str) -> None:
    """Go to the files of a volume, and wait until its folder is shown."""
    query = json.dumps({"volume": volume})
    browser.js(f"location.hash = '#files?' + encodeURIComponent({json.dumps(query)})")
    browser.wait("document.querySelector('main .crumbs')")


def arrived(file: Path, browser: Browser) -> Path:
    """Wait until a download is there, under its name."""
    until = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < until, (browser.faults, browser.text())
        time.sleep(0.05)
    return file
