# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens to people: disks that are pulled out, passphrases that are wrong, tabs, the back
button, programs that end, clocks, names of all scripts, and many qubes on a phone.
"""

import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import cannot
from tests.kit import GRAIN, PASSPHRASE, Site, fill
from tests.ui.acting import PAGES, arrived, done, files_of, sound, turn_to
from tests.ui.browser import Browser
from tests.ui.server import Page

NO_ANSWER = "does not answer"


def state_of(browser: Browser, kind: str) -> str:
    """How the newest piece of work of a kind ended, when it has."""
    job = (
        f"[...document.querySelectorAll('.job')].find((one) => one.ariaLabel.startsWith('{kind}'))"
    )
    ended = "!['queued', 'running'].includes(it.dataset.state)"
    return str(
        browser.wait(f"(() => {{ const it = {job}; return it && {ended} && it.dataset.state; }})()")
    )


def test_the_disk_is_pulled_out_and_put_back(browser: Browser, site: Site) -> None:
    browser.click("button", "Back up now")
    done(browser, "Backup", 1)
    turn_to(browser, "Overview")
    away = site.archive.with_name("away")
    site.archive.rename(away)
    browser.click("button", "Back up now")
    assert state_of(browser, "Backup") == "failed"
    browser.see("no archive")
    for name in ("Overview", "Time", "Files", "Space"):
        browser.click("nav a", name)
        browser.wait(f"document.querySelector('main h1')?.textContent == '{name}'")
        browser.wait("document.querySelector('main').innerText.includes('no archive')")
    away.rename(site.archive)
    browser.click("nav a", "Work")
    browser.click("form button", "Back up")
    done(browser, "Backup", 2)
    turn_to(browser, "Overview")
    sound(browser)


def test_jobs_of_which_one_fails_a_reload_and_cancels(
    browser: Browser, site: Site, tmp_path: Path
) -> None:
    site.image("vault/private").write_bytes(random.Random(1).randbytes(6 << 20))
    browser.click("button", "Back up now")
    done(browser, "Backup", 1)
    (tmp_path / "file").write_text("no folder")
    for target, rate in (
        (tmp_path / "slow", "100K"),
        (tmp_path / "file", ""),
        (tmp_path / "good", ""),
    ):
        browser.write("input", "Folder or URL of the copy", str(target))
        browser.write("input", "Bytes a second", rate)
        browser.click("form button", "Copy")
    browser.wait("document.querySelector('.job[data-state=running] progress[value]')")
    browser.call("Page.reload")
    browser.wait("document.querySelectorAll('.job').length == 4")
    browser.wait("document.querySelector('.job[data-state=running] progress[value]')")
    browser.see("3 at work or waiting")
    browser.click("button", f"Cancel Copy {tmp_path / 'slow'}")
    browser.wait("document.querySelector('.job[data-state=cancelled]')")
    browser.wait("document.querySelector('.job[data-state=failed]')")
    done(browser, "Copy", 1)
    assert (tmp_path / "good" / "archive.toml").exists()
    assert browser.js("document.querySelector('.job[data-state=failed] details').open"), (
        "why is seen"
    )
    for moment in (0.0, 0.1, 0.2, 0.6):
        browser.click("form button", "Verify")
        time.sleep(moment)
        browser.click_if_there("button", "Cancel Verify")
        assert state_of(browser, "Verify") in ("cancelled", "done")
    browser.click("form button", "Scrub")
    assert state_of(browser, "Scrub") == "done"
    sound(browser)


def test_another_tab_and_the_back_button(page: Page, browser: Browser) -> None:
    browser.click("button", "Back up now")
    done(browser, "Backup", 1)
    with browser.another_tab():
        browser.open(f"http://127.0.0.1:{page.port}/#time")
        browser.see("1 to 2 of 2 sessions")
        browser.click("nav a", "Work")
        done(browser, "Backup", 1)
    turn_to(browser, "Time")
    browser.write("input", "Only with this tag", "none")
    browser.see("No session fits.")
    browser.write("input", "Only with this tag", "")
    browser.click("button", "Restore … vault")
    browser.see("it is overwritten")
    browser.js("history.back()")
    browser.wait("!document.querySelector('dialog')")
    assert browser.js("location.hash").startswith("#work")
    browser.js("history.forward()")
    browser.see("1 to 2 of 2 sessions")
    browser.click("button", "Files vault")
    browser.wait("location.hash.startsWith('#files')")
    browser.js("history.back()")
    browser.see("1 to 2 of 2 sessions")
    assert browser.js("history.length") < 12
    sound(browser)


def test_a_program_that_was_killed_and_is_started_again(
    browser: Browser, page: Page, site: Site
) -> None:
    browser.see("never backed up")
    browser.online(False)
    browser.see(NO_ANSWER, 30)  # what was asked before may be answered still
    browser.online(True)
    browser.wait(f"!document.body.innerText.includes('{NO_ANSWER}')")
    page.kill()
    browser.see(NO_ANSWER)
    again = Page(site, f"--port={page.port}")
    try:
        browser.see("of a sparsebak ui that ended")
        assert NO_ANSWER not in browser.text()
        assert browser.js("document.querySelectorAll('#gone [role=alert]').length") == 1
        with browser.another_tab():
            browser.open(f"http://127.0.0.1:{page.port}/")
            browser.see("Not allowed. Start it again with: sparsebak ui")
        browser.open(again.url)
        browser.see("never backed up")
        turn_to(browser, "Setup")
    finally:
        assert again.end() == 0


@pytest.fixture
def locked(site: Site, tmp_path: Path) -> Iterator[Browser]:
    """A page that was given no key, of an archive with a session."""
    site.backup()
    page = Page(site)
    browser = Browser(str(shutil.which("chromium") or cannot("no chromium")), tmp_path / "profile")
    browser.open(page.url)
    yield browser
    browser.end()
    page.end()


def test_a_passphrase_that_is_wrong_three_times(locked: Browser) -> None:
    turn_to(locked, "Files", "Type the passphrase or recovery key in Setup")
    turn_to(locked, "Setup")
    for wrong in ("wrong", "\u202ewrong \U0001f600", "w" * 4000):
        locked.write("input", "Recovery key or passphrase", wrong)
        locked.click("button", "Try it")
        locked.see("does not open the archive")
        assert wrong not in locked.text()
    locked.write("input", "Recovery key or passphrase", PASSPHRASE.decode())
    locked.click("button", "Try it")
    locked.see("To finish, type the recovery key")
    files_of(locked, "work/private")
    locked.see("docs/")
    turn_to(locked, "Setup")
    locked.click("button", "Forget it")
    locked.see("It is forgotten.")
    turn_to(locked, "Files", "Type the passphrase or recovery key in Setup")
    sound(locked)


def test_clocks_that_are_wrong(browser: Browser) -> None:
    browser.click("button", "Back up now")
    done(browser, "Backup", 1)
    for days in (-4000, 4000):
        browser.js(
            f"(() => {{ const now = Date.now(); Date.now = () => now + {days} * 86400000; }})()"
        )
        for name in PAGES:
            turn_to(browser, name)
            shown = browser.text()
            assert (
                "NaN" not in shown
                and "Invalid" not in shown
                and "-" not in shown.split(" s")[0][-4:]
            )
    sound(browser)


NAMES = (
    "\u05e9\u05dc\u05d5\u05dd.txt",
    "\u0645\u0631\u062d\u0628\u0627 (1).pdf",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u65e5\u672c\u8a9e",
    "e\u0301",
    "\U0001f3f4",
)


def test_names_of_all_scripts(browser: Browser, site: Site, tmp_path: Path) -> None:
    mke2fs = shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin") or cannot("no mke2fs")
    tree = tmp_path / "scripts"
    (tree / NAMES[0]).mkdir(parents=True)
    for name in NAMES:
        (tree / NAMES[0] / name).write_text(name)
    image = site.image("work/private")
    subprocess.run([mke2fs, "-q", "-F", "-t", "ext4", "-d", tree, image, "4M"], check=True)
    browser.click("button", "Back up now")
    done(browser, "Backup", 1)
    turn_to(browser, "Time")
    note = "\u05d4\u05e2\u05e8\u05d4 \U0001f600"
    browser.write("input", "Note on work/private", note)
    browser.see("Saved.")
    files_of(browser, "work/private")
    browser.click("main a", NAMES[0])
    for name in (NAMES[1], NAMES[3], NAMES[5]):
        browser.see(name)
    downloads = tmp_path / "downloads"
    browser.keep_downloads(downloads)
    browser.click("button", f"Download {NAMES[1]}")
    arrived(downloads / NAMES[1], browser)
    sound(browser)


MANY = tuple(f"qube-{number:02}-with-a-name-of-31-char/private" for number in range(60))


@pytest.fixture
def phone(tmp_path: Path) -> Iterator[Browser]:
    site = Site(tmp_path / "many", volumes=MANY)
    for name in MANY:
        fill(site.image(name), GRAIN)
    page = Page(site)
    browser = Browser(str(shutil.which("chromium") or cannot("no chromium")), tmp_path / "profile")
    browser.size(390, 844)
    browser.open(page.url)
    yield browser
    browser.end()
    page.end()


def test_sixty_qubes_on_a_phone(phone: Browser) -> None:
    phone.see("never backed up")
    phone.click("nav a", "Work")
    phone.click("button", "Choose none")
    phone.click("form button", "Back up")
    phone.see("No volume is chosen.")
    phone.click("input", MANY[7])
    phone.click("form button", "Back up")
    done(phone, "Backup", 1)
    phone.see("1 new session")
    phone.click("button", "Choose all")
    phone.click("form button", "Back up")
    done(phone, "Backup", 2, 120)
    texts = PAGES | {"Time": "1 to 50 of 61 sessions", "Overview": "checks without"}
    for name, text in texts.items():
        begun = time.monotonic()
        turn_to(phone, name, text)
        assert time.monotonic() - begun < 5
        assert phone.js("document.documentElement.scrollWidth") <= 390, name
    sound(phone)


def test_a_folder_is_downloaded_and_one_that_lacks_a_file_says_so(
    browser: Browser, site: Site, tmp_path: Path
) -> None:
    mke2fs = shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin") or cannot("no mke2fs")
    tree = tmp_path / "more"
    (tree / "docs").mkdir(parents=True)
    (tree / "docs" / "a").write_text("one")
    (tree / "docs" / "b").write_bytes(random.Random(3).randbytes(3 << 20))
    (tree / "docs" / "large").write_bytes(random.Random(4).randbytes(9 << 20))
    image = site.image("work/private")
    subprocess.run([mke2fs, "-q", "-F", "-t", "ext4", "-d", tree, image, "24M"], check=True)
    browser.click("button", "Back up now")
    done(browser, "Backup", 1)
    files_of(browser, "work/private")
    downloads = tmp_path / "downloads"
    browser.keep_downloads(downloads)
    browser.click("button", "Download all of docs")
    arrived(downloads / "docs.tar", browser)
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["tar", "-xf", downloads / "docs.tar", "-C", out], check=True)
    for name in ("a", "b", "large"):
        assert (out / "docs" / name).read_bytes() == (tree / "docs" / name).read_bytes()
    assert browser.js("!document.querySelector('main [role=alert]')")
    (downloads / "docs.tar").unlink()
    for pack in site.archive.glob("packs/*/*.pack"):
        raw = bytearray(pack.read_bytes())
        raw[len(raw) * 85 // 100] ^= 1  # more than 4 MiB within the large one
        pack.write_bytes(raw)
    browser.click("button", "Download all of docs")
    browser.wait("document.querySelector('main [role=alert]')")
    browser.see("cut off within it")
    assert not (downloads / "docs.tar").exists(), "what is cut off does not look whole"
    sound(browser)
