# SPDX-License-Identifier: GPL-2.0-or-later
"""What another page in the same browser can do, on another port of this machine, which the browser
sends our cookie to, or under a name that leads here: nothing.
"""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ui.acting import done, turn_to
from tests.ui.browser import REBOUND, Browser
from tests.ui.server import Page

CLOSED = {
    **{"json": "refused", "names": "refused", "page": "refused", "image": "refused"},
    **{"script": "refused", "socket": "refused", "events": "refused", "channel": "nothing"},
}


@pytest.fixture
def stranger(page: Page) -> Iterator[str]:
    """The address of a page that tries all this."""
    tries = Path(__file__).with_name("stranger.html").read_text().replace("PORT", str(page.port))

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(tries.encode())

        def log_message(self, *what: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_another_page_of_the_browser_can_do_and_see_nothing(
    page: Page, browser: Browser, stranger: str
) -> None:
    browser.see("never backed up")
    with browser.another_tab():
        browser.open(stranger)
        found = json.loads(str(browser.wait("document.title.startsWith('{') && document.title")))
        assert {key: found[key] for key in CLOSED} == CLOSED, found
        # what it sent unseen, and cannot read, was refused: nothing is in the queue below
        assert found["text"] in ("opaque", "refused") and "sparsebak" not in found["frame"]
        browser.open(f"http://{REBOUND}:{page.port}/")
        browser.see("Not allowed")
    turn_to(browser, "Work", "Nothing was asked for yet.")
    assert not browser.js("document.querySelector('.job')")


def test_the_token_stays_nowhere(page: Page, browser: Browser) -> None:
    browser.see("never backed up")
    browser.click("button", "Back up now")
    done(browser, "Backup", 1)
    entries = browser.call("Page.getNavigationHistory")["entries"]
    assert not [one for one in entries if "token" in one["url"]], entries
    everything = browser.js(
        "JSON.stringify([location.href, document.referrer, document.cookie, {...localStorage}])"
    )
    assert page.url.partition("token=")[2] not in everything
    browser.open(page.url)
    browser.see("Not allowed")
