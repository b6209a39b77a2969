# SPDX-License-Identifier: GPL-2.0-or-later
"""A file that is gone is found in the session that has it, before and after names are indexed."""

import shutil
import subprocess
import time
from pathlib import Path

from tests.conftest import cannot
from tests.kit import Site
from tests.ui.acting import arrived, done, files_of, sound
from tests.ui.browser import Browser


def test_a_file_that_is_gone_is_found_in_all_sessions(
    browser: Browser, site: Site, tmp_path: Path
) -> None:
    mke2fs = shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin") or cannot("no mke2fs")
    for number, name in enumerate(("gone.txt", "new.txt"), 1):
        tree = tmp_path / name
        (tree / "docs").mkdir(parents=True)
        (tree / "docs" / name).write_text(name)
        command = [mke2fs, "-q", "-F", "-t", "ext4", "-d", tree, site.image("work/private"), "4M"]
        subprocess.run(command, check=True)
        browser.click("nav a", "Work")
        browser.see("Which volumes")
        browser.click("form button", "Back up")
        done(browser, "Backup", number)
        time.sleep(1.1)  # sessions are named by the second
    downloads = tmp_path / "downloads"
    browser.keep_downloads(downloads)
    for indexed in (False, True):
        files_of(browser, "work/private")
        browser.write("input", "Search names here", "gone")
        browser.click("form button", "Go")
        browser.see("No name here has this in it.")
        browser.click("input", "in all sessions")
        browser.click("form button", "Go")
        browser.see("/docs/gone.txt")
        assert browser.js("document.querySelector('main input[type=checkbox]').checked")
        browser.click("button", "Download /docs/gone.txt")
        file = arrived(downloads / "gone.txt", browser)
        assert file.read_text() == "gone.txt"
        file.unlink()
        if not indexed:
            browser.click("button", "Index the names")
            done(browser, "Index of names", 1)
            browser.see("2 sessions indexed")
    sound(browser)
