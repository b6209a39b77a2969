# SPDX-License-Identifier: GPL-2.0-or-later
"""The report: one page that needs nothing else, right in what it says, and drawn by a real browser
in light and dark.
"""

import os
import random
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.commands import Commands
from tests.conftest import cannot
from tests.kit import GRAIN, Site, fill
from tests.run.test_prune_rules import DAY, NOW, sessions_of_ages


class Checker(HTMLParser):
    """Collects text, and what a page would fetch or run; every element must be closed."""

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.fetched: list[str] = []
        self.days: dict[str, int] = {}

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        names = dict(attributes)
        if tag in ("script", "iframe", "object", "embed", "link", "img") or any(
            name.startswith("on") for name in names
        ):
            self.fetched.append(tag)
        self.fetched += [
            str(names[name]) for name in ("src", "href", "xlink:href") if name in names
        ]
        if tag not in self.VOID:
            self.open.append(tag)
        if (found := re.search(r"level(\d)", str(names.get("class")))) and tag == "rect":
            self.days[found[1]] = self.days.get(found[1], 0) + 1

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert (
        checker.open == []
        and checker.fetched == []
        and "url(" not in page
        and "@import" not in page
    )
    return checker


def test_nothing_but_a_page_is_replaced(commands: Commands) -> None:
    slots = commands.site.archive / "archive.toml"
    before = slots.read_bytes()
    assert "is no page" in commands.fails(1, "report", "-o", str(slots))
    place = commands.site.root / "place"
    place.mkdir()
    commands.run("upkeep", str(place), "--report", str(slots), expect=None)
    assert slots.read_bytes() == before


def test_what_it_says(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    names = sessions_of_ages(
        commands.site, monkeypatch, [day * DAY for day in (0, 1, 1, 40)] + [DAY + 60, DAY + 120]
    )
    commands.keyed("verify")
    file = commands.site.root / "report.html"
    file.touch()
    for _ in range(2):
        commands.run("report", "-o", str(file), "--passphrase-file", str(commands.passphrase))
    checker = check(file.read_text())
    text = " ".join(checker.text)
    assert (
        "Archive tests" in text
        and "Scrub: never done" in text
        and "Verify work/private: sound, today" in text
    )
    assert names[-1] in text and "private" in text
    assert checker.days["1"] == 2 and checker.days["2"] == 1 and sum(checker.days.values()) > 360
    assert "4 sessions" in text
    growth = [
        part
        for part in checker.text
        if re.fullmatch(r"\d\d \w{3} \d{4}: [\d.]+ KiB|\d\d \w{3} \d{4}: [\d.]+ MiB", part)
    ]
    assert len(growth) == len(names)


def test_names_cannot_break_out_of_it(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    from backup_vm.reporting.page import page

    evil = "</title><script>alert(1)</script>"
    status = {
        "label": evil, "path": evil, "mode": evil, "stored": 0, "free": None, "problems": [evil],
        "scrubbed": None, "part_scrubbed": None,
        "unproven": {"name": evil, "session": evil, "since": NOW, "verified": True},
        "drilled": {"name": evil, "time": NOW, "ok": False},
        "names": 1,
        "leases": [{"host": evil, "process": 1, "command": evil, "since": NOW, "renewed": NOW}],
        "lock": None, "next_run": evil,
        "volumes": [{"name": evil, "latest": None, "drilled": {"time": NOW, "ok": False}}],
    }  # fmt: skip
    session = {"session": evil, "time": NOW, "size": 1}
    volume = {
        "qube": evil, "volume": evil, "own": None, "shared": None, "compression": None,
        "deduplication": None,
        "verified": {"time": NOW - 90 * DAY, "ok": False}, "sessions": [session],
    }  # fmt: skip
    checker = check(page(status, [volume], [(NOW, 5)], NOW))
    assert "damage found, 90 days ago" in " ".join(checker.text)


def test_an_archive_without_sessions(commands: Commands) -> None:
    file = commands.site.root / "report.html"
    commands.run("report", "-o", str(file))
    assert "There are no sessions yet" in " ".join(check(file.read_text()).text)


def test_a_browser_draws_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands_for: object
) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        cannot("chromium is not installed")
    site = Site(tmp_path / "site", volumes=("work/private", "vault/private"))
    for name in site.volumes:
        fill(site.image(name), 20 * GRAIN)
    rng = random.Random(3)
    sessions_of_ages(
        site,
        monkeypatch,
        sorted({rng.randrange(200) * DAY + rng.randrange(DAY) for _ in range(12)}),
    )
    monkeypatch.setattr(time, "time", lambda: NOW)
    commands = commands_for(site)  # type: ignore[operator]
    file = tmp_path / "report.html"
    commands.run("report", "-o", str(file), "--passphrase-file", str(commands.passphrase))
    sizes = set()
    for scheme in ("light", "dark"):
        picture = tmp_path / f"{scheme}.png"
        command = [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--disable-quic", "--hide-scrollbars",
            "--window-size=1000,1500",
            f"--user-data-dir={tmp_path}/{scheme}", f"--screenshot={picture}",
            f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}", file.as_uri(),
        ]  # fmt: skip
        environment = {**os.environ, "HOME": str(tmp_path)}
        done = subprocess.run(
            command, capture_output=True, timeout=120, check=False, env=environment
        )
        assert picture.exists(), done.stderr.decode()[-500:]
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        sizes.add(picture.read_bytes())
        if keep := os.environ.get("SPARSEBAK_PICTURES"):
            shutil.copy(picture, keep)
    assert len(sizes) == 2, "dark is another picture than light"
