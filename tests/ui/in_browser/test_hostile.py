# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of files and notes that were made to harm: seen for what they are, and still of use."""

import json
import os
import shutil
import subprocess
import urllib.parse
from pathlib import Path

import pytest

from tests.conftest import cannot
from tests.kit import Site
from tests.ui.acting import done, page_sessions, sound, turn_to
from tests.ui.browser import Browser
from tests.ui.server import Page

NAMES = (
    b"<img src=x onerror=alert(1)>",
    b"<svg onload=alert(1)><script>alert(1)",
    "\u202egnp.exe".encode(),
    "\u2066isolate\u2069".encode(),
    b"quotes \" ' ` &amp; \\ %00 %2f",
    b"two\nlines\tand a tab",
    b"\x1b[31mred",
    b"\xff\xfe no text",
    b"--help",
    b"[a-z]*?",
    "\U0001f600 plain".encode(),
    b"x" * 255,
)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path / "site")
    mke2fs = shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin") or cannot("no mke2fs")
    tree = os.fsencode(tmp_path / "tree")
    os.makedirs(tree + b"/\xfffolder<b>")
    for number, name in enumerate(NAMES):
        for folder in (tree, tree + b"/\xfffolder<b>"):
            with open(folder + b"/" + name, "w") as file:
                file.write(str(number))
    command = [mke2fs, "-q", "-F", "-t", "ext4", "-d", tree, site.image(), "4M"]
    subprocess.run(command, check=True)
    return site


def test_names_of_files(page: Page, browser: Browser, tmp_path: Path) -> None:
    browser.click("button", "Back up now")
    done(browser, "Backup", 1)
    turn_to(browser, "Files")
    browser.see("\\u202egnp.exe")
    shown = browser.text()
    escaped = ("two\\x0alines", "\\x1b[31mred", "\\udcff\\udcfe no text")
    for text in ("<script>alert(1)", *escaped, "x" * 255):
        assert text in shown, text
    assert not set(shown) & set("\u202e\u2066\x1b\udcff")
    browser.size(390, 844)
    assert browser.js("document.documentElement.scrollWidth") <= 390
    browser.size(1200, 800)
    browser.click("main a", "\\udcfffolder<b>/")
    browser.wait("document.querySelector('.crumbs strong')")
    browser.see("no text")
    downloads = tmp_path / "downloads"
    browser.keep_downloads(downloads)
    for number, name in enumerate(NAMES):
        path = "/\udcfffolder<b>/" + os.fsdecode(name)
        asked = json.dumps({"volume": "work/private", "session": "latest", "path": path})
        got = browser.js(
            f"import('/page/api.js').then(({{post}}) => post('ticket', {asked}))"
            ".then(({link}) => fetch(link)).then(async (one) =>"
            " [await one.text(), one.headers.get('content-disposition')])"
        )
        assert got[0] == str(number), (name, got)
        saved = urllib.parse.unquote(got[1].partition("UTF-8''")[2])
        assert saved.isprintable(), saved
    browser.click("button", "Versions of \\u202egnp.exe")
    browser.see("new, 1 B")
    browser.click("button", "Its folder as of")
    browser.see("no text")
    browser.write("input", "Search names here", "[a-z]")
    browser.click("form button", "Go")
    browser.wait("document.querySelectorAll('main tbody tr').length == 1")
    browser.see("[a-z]*?")
    browser.write("input", "Search names here", "--he")
    browser.click("form button", "Go")
    browser.see("/--help")
    sound(browser)


def test_tags_notes_and_addresses(page: Page, browser: Browser) -> None:
    browser.click("button", "Back up now")
    done(browser, "Backup", 1)
    turn_to(browser, "Time", "1 to 1 of 1 session")
    browser.write("input", "Note on work/private", "turned \u202e round")
    browser.see("a note is one line")
    note = 'a "note" </script><b>&lt; &amp; \\'
    browser.write("input", "Note on work/private", note)
    browser.see("Saved.")
    assert page_sessions(browser)[0]["note"] == note
    values = "[...document.querySelectorAll('main input')].map((one) => one.value)"
    assert note in browser.js(values)
    odd = urllib.parse.quote('{"path": ["<b>"]}')
    for fragment in ("#files?%00%ff", "#time?{", "#nothing", f"#files?{odd}"):
        browser.js(f"location.hash = {json.dumps(fragment)}")
        browser.see("Volume")
    evil = urllib.parse.quote('{"volume": "<img src=x>", "path": "/\\u202e"}')
    browser.js(f"location.hash = '#files?{evil}'")
    browser.wait("document.querySelector('main .bad')")
    sound(browser)
