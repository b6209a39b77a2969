# SPDX-License-Identifier: GPL-2.0-or-later
"""From nothing to a first backup and a proven recovery key, and a copy, all in the browser."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dom0_agent.admin import archives
from dom0_agent.config import load
from dom0_agent.keyring import Keyring
from tests.conftest import cannot
from tests.kit import GRAIN, PASSPHRASE, Site, fill
from tests.ui.acting import done, sound, turn_to
from tests.ui.browser import Browser
from tests.ui.server import Page
from wire import slots
from wire.chunks import SUITE_SHA256


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Site, Browser]]:
    """A machine with an agent and a volume, on which there was never an archive."""
    monkeypatch.setattr(slots, "SCRYPT_LOG_N", 10)  # the cost is measured elsewhere
    site = Site(tmp_path / "site", make=False)
    site._make()
    fill(site.image(), 6 * GRAIN)
    chromium = shutil.which("chromium") or cannot("no chromium")
    page = Page(site, archive=None)
    browser = Browser(str(chromium), tmp_path / "profile")
    browser.open(page.url)
    yield site, browser
    browser.end()
    page.end()


def test_from_nothing_to_a_proven_recovery_key(bare: tuple[Site, Browser]) -> None:
    site, browser = bare
    browser.see("no archive was named")
    browser.click("main a", "Setup")
    browser.write("input", "Name of the archive", "laptop")
    command = browser.js("document.querySelector('[data-part=dom0]').textContent")
    assert command == "sudo sparsebak-agent archive add laptop --caller dom0"
    keyring = Keyring(load(site.config).state_dir)
    _, recovery = archives.add(keyring, "laptop", "dom0", SUITE_SHA256, GRAIN, PASSPHRASE)
    assert recovery is not None
    browser.write("input", "Where it will be", str(site.archive))
    browser.click("form button", "Make the archive")
    done(browser, "New archive", 1)
    browser.click("nav a", "Setup")
    browser.see("Archive laptop in")
    browser.click("button", "Back up now")
    done(browser, "Backup", 1)
    turn_to(browser, "Setup")
    browser.click("button", "Scrub now")
    done(browser, "Scrub", 1)
    turn_to(browser, "Setup")
    for text, said in (
        ("wrong", "does not open the archive"),
        (PASSPHRASE.decode(), "To finish, type the recovery key"),
        (slots.recovery_text(recovery), "The recovery key opens the archive"),
    ):
        browser.write("input", "Recovery key or passphrase", text)
        browser.click("button", "Try it")
        browser.see(said)
    browser.wait("document.querySelector('main li:last-of-type h2 .ok')")
    steps = browser.js(
        "[...document.querySelectorAll('main li h2')].map((one) => [one.firstChild.data,"
        " one.querySelector('span').textContent])"
    )
    left = [name for name, state in steps if state != "done"]
    assert left == ["Backups run by themselves"], steps
    sound(browser)


def test_a_copy_with_progress_and_one_that_is_cancelled(
    browser: Browser, site: Site, tmp_path: Path
) -> None:
    site.image("vault/private").write_bytes(random.Random(1).randbytes(6 << 20))
    browser.click("button", "Back up now")
    done(browser, "Backup", 1)
    slow, later = tmp_path / "slow", tmp_path / "later"
    browser.write("input", "Folder or URL of the copy", str(slow))
    browser.write("input", "Bytes a second", "100K")
    browser.click("form button", "Copy")
    browser.write("input", "Folder or URL of the copy", str(later))
    browser.click("form button", "Copy")
    browser.wait("document.querySelector('.job[data-state=running] progress[value]')")
    browser.wait("document.querySelector('.job[data-state=queued]')")
    browser.click("button", f"Cancel Copy {slow}")
    browser.wait("document.querySelector('.job[data-state=cancelled]')")
    browser.see("1 at work or waiting")
    browser.click("button", f"Cancel Copy {later}")
    browser.wait("document.querySelectorAll('.job[data-state=cancelled]').length == 2")
    browser.write("input", "Folder or URL of the copy", str(slow))
    browser.write("input", "Bytes a second", "0x")
    browser.click("form button", "Copy")
    browser.wait("document.querySelector('.job[data-state=failed]')")
    browser.write("input", "Bytes a second", "")
    browser.click("form button", "Copy")
    done(browser, "Copy", 1)
    assert (slow / "archive.toml").exists()
    sound(browser)
