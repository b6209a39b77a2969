# SPDX-License-Identifier: GPL-2.0-or-later
"""A run that may wait for the one that has the archive: it says so once, and takes its turn."""

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from backup_vm import cli
from backup_vm.archive.holder import Holder
from backup_vm.archive.storage.local import LocalStorage
from tests.kit import GRAIN, Site, fill

ELSEWHERE = replace(Holder.this("scrub"), machine="another", host="nas", process=77, since=0)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path / "site")
    fill(site.image(), 20 * GRAIN)
    site.backup()
    return site


@contextmanager
def locked(site: Site, seconds: float, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Somebody has the archive for so long, as one on this machine has it."""
    fd = os.open(site.archive / "archive.lock", os.O_RDONLY)
    fcntl.flock(fd, how)
    with ended(seconds, lambda: os.close(fd)):
        yield


@contextmanager
def leased(site: Site, seconds: float) -> Iterator[None]:
    """The same, on another machine."""
    locks = LocalStorage(site.archive).locks()
    locks.put("writer-9", ELSEWHERE.dump())
    with ended(seconds, lambda: locks.remove("writer-9")):
        yield


@contextmanager
def ended(seconds: float, end: Callable[[], None]) -> Iterator[None]:
    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def words(site: Site, command: str, *more: str) -> list[str]:
    agent = ["--agent", f"local:{site.config}", "--caller", "backup-vm"]
    return ["--archive", str(site.archive), *agent, command, *more]


@pytest.mark.parametrize(
    ("command", "hold"), [("backup", leased), ("scrub", locked), ("prune", locked)]
)
def test_a_run_waits_for_another_one(
    site: Site,
    capsys: pytest.CaptureFixture[str],
    command: str,
    hold: Callable[[Site, float], AbstractContextManager[None]],
) -> None:
    rules = ["--keep-last", "9"] if command == "prune" else []
    with hold(site, 0.3):
        began = time.monotonic()
        assert cli.main(words(site, command, *rules, "-q", "--lock-wait", "7200")) == 0
        assert time.monotonic() - began >= 0.3
    line, *others = capsys.readouterr().err.splitlines()
    assert "in use by another run" in line and "waiting for it to end, 2 hours" in line
    assert not others


def test_a_backup_waits_for_readers(site: Site) -> None:
    """A check by hand, or files that somebody looks at."""
    sessions = len(site.images())
    fill(site.image(), 20 * GRAIN, 1)
    with locked(site, 0.2, fcntl.LOCK_SH):
        assert cli.main(words(site, "backup", "--lock-wait", "60")) == 0
    assert len(site.images()) == sessions + 1


def test_it_waits_no_longer_than_it_was_told(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    fd = os.open(site.archive / "archive.lock", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    capsys.readouterr()
    for given in ([], ["--lock-wait", "0"]):
        assert cli.main(words(site, "backup", *given)) == 11
        assert "waiting" not in capsys.readouterr().err
    assert cli.main(words(site, "backup", "--lock-wait", "1")) == 11
    first, last = capsys.readouterr().err.splitlines()
    assert "1 seconds at most" in first and "try again" in last
    os.close(fd)


@pytest.mark.parametrize("given", ["-1", "12h", "1.5", "", "9" * 9])
def test_what_is_no_number_of_seconds_is_refused(
    site: Site, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(words(site, "backup", f"--lock-wait={given}"))
    assert "--lock-wait" in capsys.readouterr().err
