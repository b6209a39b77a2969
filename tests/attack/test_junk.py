# SPDX-License-Identifier: GPL-2.0-or-later
"""Whoever can only add sessions, and clocks that are wrong, against the rules by which another
machine prunes.
"""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backup_vm.archive import sessions
from backup_vm.archive.format import RECORD_AT
from backup_vm.jobs import guard
from common.text import session_name
from tests.commands import Commands
from tests.kit import GRAIN, Site, change, fill
from wire.records import RECORD_SIZE, read_clear

DAY = 86400
NOW = 1_780_000_000
GOOD = 10


@pytest.fixture
def good(
    site: Site,
    commands_for: Callable[[Site], Commands],
    monkeypatch: pytest.MonkeyPatch,
) -> Commands:
    """A volume with a session of each of the last days, stored on its day."""
    commands = commands_for(site)
    monkeypatch.setattr(guard, "AGE", 3 * DAY)
    fill(site.image(), 8 * GRAIN)
    for ago in range(GOOD, 0, -1):
        change(site.image(), random.Random(ago), resize=False)
        add(site, monkeypatch, NOW - ago * DAY)
    monkeypatch.setattr(time, "time", lambda: float(NOW))
    return commands


def add(site: Site, monkeypatch: pytest.MonkeyPatch, claims: int, stored: int = 0) -> None:
    """A session that claims a time; its file is as old as it was ``stored``."""
    monkeypatch.setattr(time, "time", lambda: float(claims))
    before = set(site.archive.rglob("*.session"))
    with open(site.image(), "r+b") as file:
        file.write(random.Random(claims).randbytes(100))
    site.backup()
    for path in set(site.archive.rglob("*.session")) - before:
        os.utime(path, (stored or claims,) * 2)
    monkeypatch.setattr(time, "time", lambda: float(NOW))


def forge(site: Site, count: int, claims: Callable[[int], int], stored: int = NOW) -> None:
    """Sessions that are made without any key, of the newest record: each with an id, a number and a
    time of its own, and stored when it is said.
    """
    newest = max(site.archive.rglob("*.session"), key=lambda path: path.name)
    record = newest.read_bytes()[RECORD_AT : RECORD_AT + RECORD_SIZE]
    clear = read_clear(record)
    with site.open(True) as archive:
        for number in range(1, count + 1):
            forged = clear.replaced(
                session=os.urandom(16),
                sequence=clear.sequence + number,
                time=claims(number),
            ).build()
            made = sessions.write(
                archive.storage, forged + record[len(forged) :], bytes(16), 0, 0, [], []
            )
            os.utime(site.archive / made.file, (stored, stored))


def names() -> list[str]:
    """The good ones."""
    return [session_name(NOW - ago * DAY) for ago in range(GOOD, 0, -1)]


def left(commands: Commands) -> list[str]:
    """The good ones that are still there."""
    listed = commands.json("list")["volumes"][0]["sessions"]
    return [name for name in names() if name in {one["session"] for one in listed}]


def test_a_thousand_new_sessions_push_nothing_out(good: Commands) -> None:
    forge(good.site, 1000, lambda number: NOW - 1100 + number)
    for rule in (("--keep-last", "1000"), ("--keep-last", "10"), ("--keep-daily", "5")):
        good.outcome("prune", *rule)
    assert left(good)[-5:] == names()[-5:]
    good.run("prune", "--keep-last", "10")
    assert left(good)[-5:] == names()[-5:]


def test_sessions_that_claim_other_days_count_by_the_day_they_came(good: Commands) -> None:
    forge(good.site, 400, lambda number: NOW - number * DAY + 7, NOW - 4 * DAY)
    error = good.fails(14, "prune", "--keep-last", "1")
    assert "is left as it is" in error and "--max-removed" in error and left(good) == names()
    # There is one of theirs on each day, later on it than the good one: no day would be lost but by
    # when they came.
    assert "days of storing" in good.fails(14, "prune", "--keep-daily", "400")
    assert left(good) == names()


def test_a_clock_ahead_removes_nothing_new(good: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of whoever adds, nor of whoever prunes."""
    forge(good.site, 100, lambda number: NOW + number * DAY)
    error = good.outcome("prune", "--keep-daily", "10")
    assert error[0] == 0 and left(good) == names()
    for path in good.site.archive.rglob("locks/*"):
        path.unlink()
    monkeypatch.setattr(time, "time", lambda: float(NOW + 4 * 365 * DAY))
    good.outcome("prune", "--keep-daily", "10")
    assert left(good)[-5:] == names()[-5:]


def test_what_is_meant_is_done(good: Commands) -> None:
    error = good.fails(14, "prune", "--keep-last", "1", "--min-age", "0d")
    share = error.rpartition(" ")[2].strip()
    good.run("prune", "--keep-last", "1", "--min-age", "0d", "--max-removed", share)
    assert left(good) == names()[-1:]


def test_a_copy_keeps_what_is_gone_at_its_source(good: Commands) -> None:
    copy = str(good.site.root / "copy")
    good.run("copy", copy)
    good.run("prune", "--keep-last", "1", "--min-age", "0d", "--max-removed", "100%")
    error = good.fails(14, "copy", copy, "--delete", "--yes")
    assert "of the copy is left as it is" in error
    assert list(good.site.images(folder=Path(copy))) == names()
    words = ("--max-removed", "100%", "--min-age", "0d")
    good.run("copy", copy, "--delete", "--yes", *words)
    assert list(good.site.images(folder=Path(copy))) == names()[-1:]
