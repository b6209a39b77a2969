# SPDX-License-Identifier: GPL-2.0-or-later
"""A run that may wait for the one that has the archive: it says so once, and takes its turn."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from backup_vm import cli
from backup_vm.archive import turn
from backup_vm.archive.holder import Holder
from backup_vm.archive.storage.local import LocalStorage
from tests.kit import GRAIN, Site, backed_up, fill

ELSEWHERE = Holder.this("scrub")._replace(machine="another", host="nas", process=77, since=0)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return backed_up(tmp_path / "site")


Release = Callable[[], None]


def locked(site: Site, how: int = fcntl.LOCK_EX) -> Release:
    """Somebody has the archive, as one on this machine has it; what ends that."""
    fd = os.open(site.archive / "archive.lock", os.O_RDONLY)
    fcntl.flock(fd, how)
    return lambda: os.close(fd)


def leased(site: Site) -> Release:
    """The same, on another machine."""
    locks = LocalStorage(site.archive).locks()
    locks.put("writer-9", ELSEWHERE.dump())
    return lambda: locks.remove("writer-9")


def releasing(monkeypatch: pytest.MonkeyPatch, release: Release) -> list[float]:
    """Have the archive let go while its waiter sleeps the second time; how long it slept."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            release()

    monkeypatch.setattr(turn.stopping, "sleep", sleep)
    return slept


def words(site: Site, command: str, *more: str) -> list[str]:
    agent = ["--agent", f"local:{site.config}", "--caller", "backup-vm"]
    return ["--archive", str(site.archive), *agent, command, *more]


@pytest.mark.parametrize(
    ("command", "hold"), [("backup", leased), ("scrub", locked), ("prune", locked)]
)
def test_a_run_waits_for_another_one(
    site: Site,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    hold: Callable[[Site], Release],
) -> None:
    rules = ["--keep-last", "9"] if command == "prune" else []
    slept = releasing(monkeypatch, hold(site))
    assert cli.main(words(site, command, *rules, "-q", "--lock-wait", "7200")) == 0
    assert len(slept) == 2
    line, *others = capsys.readouterr().err.splitlines()
    assert "in use by another run" in line and "waiting for it to end, 2 hours" in line
    assert not others


def test_a_backup_waits_for_readers(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check by hand, or files that somebody looks at."""
    sessions = len(site.images())
    fill(site.image(), 20 * GRAIN, 1)
    slept = releasing(monkeypatch, locked(site, fcntl.LOCK_SH))
    assert cli.main(words(site, "backup", "--lock-wait", "60")) == 0
    assert len(slept) == 2 and len(site.images()) == sessions + 1


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


@pytest.mark.parametrize("seconds", [0.5, 119, 7200, 43_200, 99_999_999])
def test_however_long_the_wait_is_it_is_said_in_figures(seconds: float) -> None:
    number, word = turn._long(seconds).split()
    size = {"seconds": 1, "minutes": 60, "hours": 3600}[word]
    assert "e" not in number and float(number) * size == pytest.approx(seconds, rel=0.01)
