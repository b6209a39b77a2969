# SPDX-License-Identifier: GPL-2.0-or-later
"""An archive, the server of its page, and a browser that shows it."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import cannot
from tests.kit import GRAIN, PASSPHRASE, Site, fill
from tests.ui.browser import Browser
from tests.ui.server import Page

HOSTILE = "<img src=x onerror=alert(1)>"
VOLUMES = ("work/private", "vault/private")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path / "site", volumes=VOLUMES)
    fill(site.image("vault/private"), 6 * GRAIN)
    mke2fs = shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin") or cannot("no mke2fs")
    tree = tmp_path / "tree"
    (tree / "docs").mkdir(parents=True)
    (tree / HOSTILE).write_text("hello")
    (tree / "docs" / "a.txt").write_text("one")
    image = site.image("work/private")
    subprocess.run([mke2fs, "-q", "-F", "-t", "ext4", "-d", tree, image, "4M"], check=True)
    return site


@pytest.fixture
def page(site: Site) -> Iterator[Page]:
    file = site.root / "pw"
    file.write_bytes(PASSPHRASE)
    found = Page(site, f"--passphrase-file={file}")
    yield found
    if found.process.poll() is None:
        found.end()


@pytest.fixture
def browser(page: Page, tmp_path: Path) -> Iterator[Browser]:
    chromium = shutil.which("chromium") or cannot("no chromium")
    found = Browser(str(chromium), tmp_path / "profile")
    found.open(page.url)
    yield found
    found.end()
