# SPDX-License-Identifier: GPL-2.0-or-later
"""The page without a mouse, and without eyes: axe-core's checks on every page as it is drawn, and
everything by the keyboard alone.
"""

import importlib.util
import json
from pathlib import Path

import pytest

from tests.conftest import cannot
from tests.ui.acting import PAGES, arrived, done, files_of, sound, turn_to
from tests.ui.browser import Browser

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def checks() -> str:
    """The script of axe-core, which a package for another driver of browsers brings."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        cannot("no axe-core: make test-ui installs it")
    return Path(found.origin).with_name("axe.min.js").read_text()


def violations(browser: Browser, script: str) -> list[str]:
    """What axe-core says against what is drawn now, and where."""
    browser.run(script)
    tags = json.dumps({"runOnly": {"type": "tag", "values": RULES}})
    found = browser.js(
        f"axe.run(document, {tags}).then(({{violations, passes}}) => [passes.length,"
        " violations.flatMap((one) => one.nodes.map((node) =>"
        " `${one.id}: ${node.target} ${node.failureSummary}`))])"
    )
    assert found[0] > 10, "it looked at something"
    said: list[str] = found[1]
    return said


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_any_page(browser: Browser, scheme: str, width: int) -> None:
    script = checks()
    browser.scheme(scheme)
    browser.size(width, 844)
    browser.see("never backed up")
    wrong = {"Overview at first": violations(browser, script)}
    turn_to(browser, "Setup")
    wrong["Setup at first"] = violations(browser, script)
    turn_to(browser, "Overview")
    browser.click("button", "Back up now")
    done(browser, "Backup", 1)
    for page in PAGES:
        turn_to(browser, page)
        wrong[page] = violations(browser, script)
    turn_to(browser, "Time")
    browser.write("input", "Newest", "1")
    browser.see("would come free")
    wrong["the simulator"] = violations(browser, script)
    browser.click("button", "Restore … vault")
    browser.see("it is overwritten")
    wrong["a question"] = violations(browser, script)
    browser.press("Escape")
    files_of(browser, "work/private")
    wrong["files"] = violations(browser, script)
    browser.click("nav a", "Work")
    browser.online(False)
    browser.see("does not answer", 30)
    wrong["without an answer"] = violations(browser, script)
    browser.online(True)
    assert [f"{page}: {one}" for page, said in wrong.items() for one in said] == []
    sound(browser)


def focused(browser: Browser) -> str:
    """What has the focus, as a screen reader names it."""
    return str(
        browser.js(
            "(() => { const one = document.activeElement; return one.ariaLabel ??"
            " one.labels?.[0]?.textContent ??"
            " (one.matches('dialog, main, body') ? '' : one.textContent); })()"
        )
    )


def tab_to(browser: Browser, name: str) -> None:
    """Press Tab until something of this name has the focus, which is seen."""
    met = []
    for _ in range(80):
        browser.press("Tab")
        met.append(focused(browser))
        if name in met[-1]:
            seen = "getComputedStyle(document.activeElement)"
            assert browser.js(f"{seen}.outlineStyle != 'none' || {seen}.stroke != 'none'"), (
                f"the focus on {name} is not seen"
            )
            return
    raise AssertionError((name, met))


def test_everything_by_the_keyboard_alone(browser: Browser, tmp_path: Path) -> None:
    browser.see("never backed up")
    tab_to(browser, "Skip to the page")
    browser.press("Enter")
    tab_to(browser, "Back up now")
    browser.press("Enter")
    done(browser, "Backup", 1)
    tab_to(browser, "Log")
    browser.press("Enter")
    browser.see("sparsebak backup")
    browser.js("document.getElementById('skip').focus()")
    tab_to(browser, "Time")
    browser.press("Enter")
    browser.see("1 to 2 of 2 sessions")
    assert browser.js("document.activeElement.id") == "main", "reading begins at the new page"
    tab_to(browser, ": 2 sessions")
    today = focused(browser)
    browser.press("ArrowUp")
    assert "no session" in focused(browser)
    browser.press("Enter")
    browser.see("no session yet")
    assert "no session" in focused(browser), "choosing a day keeps the place"
    browser.press("ArrowLeft")
    assert focused(browser) != today
    tab_to(browser, "Now")
    browser.press(" ")
    browser.see("1 to 2 of 2 sessions")
    tab_to(browser, "Restore … vault")
    browser.press("Enter")
    browser.see("it is overwritten")
    tab_to(browser, "Replace what is there now")
    browser.press(" ")
    browser.press("Escape")
    browser.wait("!document.querySelector('dialog')")
    assert "Restore … vault" in focused(browser), "the focus returns to where it was"
    browser.press("Enter")
    browser.see("it is overwritten")
    tab_to(browser, "Replace what is there now")
    browser.press(" ")
    tab_to(browser, "Restore")
    browser.press("Enter")
    done(browser, "Restore", 1)
    for page in ("Files", "Space", "Setup", "Overview"):
        browser.js("document.getElementById('skip').focus()")
        tab_to(browser, page)
        browser.press("Enter")
        browser.see(PAGES[page])
    downloads = tmp_path / "downloads"
    browser.keep_downloads(downloads)
    files_of(browser, "work/private")
    browser.js("document.getElementById('skip').focus()")
    tab_to(browser, "Download all of docs")
    browser.press("Enter")
    arrived(downloads / "docs.tar", browser)
    browser.js("document.getElementById('skip').focus()")
    tab_to(browser, "Work")
    browser.press("Enter")
    browser.see(PAGES["Work"])
    tab_to(browser, "vault/private")
    browser.press(" ")
    tab_to(browser, "work/private")
    browser.press(" ")
    tab_to(browser, "Back up")
    browser.press("Enter")
    browser.see("No volume is chosen.")
    sound(browser)
