# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak restore``: what a user must say for which session, where dom0 knows the newest and
where it does not.
"""

import random
import shutil
import time
from pathlib import Path

import pytest

from backup_vm import cli
from backup_vm.errors import AgentError
from tests.kit import GRAIN, Site, change, fill


@pytest.fixture
def made(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Three sessions; commands go to the agent by its configuration."""
    fill(site.image(), 20 * GRAIN)
    for _ in range(3):
        site.backup()
        change(site.image(), random.Random(1), resize=False)
    monkeypatch.setenv("SPARSEBAK_ARCHIVE", str(site.archive))
    monkeypatch.setenv("SPARSEBAK_AGENT", f"local:{site.config}")
    return site


def restore(*words: str) -> int:
    return cli.main(["--caller", "backup-vm", "restore", "work/private", "--yes", *words])


def test_the_latest_and_one_that_is_named(made: Site) -> None:
    names, contents = list(made.images()), list(made.images().values())
    assert restore() == 0 and made.contents() == contents[-1]
    assert restore("--session", names[0]) == 0 and made.contents() == contents[0]
    assert restore("--session", names[-1]) == 0 and made.contents() == contents[-1]


def test_the_latest_here_is_not_the_newest_dom0_knows(
    made: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An old copy of the archive: its latest session must be named."""
    shutil.copytree(made.archive, tmp_path / "old")
    made.backup()
    newest = list(made.images())[-1]
    shutil.rmtree(made.archive)
    shutil.move(tmp_path / "old", made.archive)
    latest, before = list(made.images().items())[-1], made.contents()
    capsys.readouterr()
    assert restore() == 1 and made.contents() == before
    said = capsys.readouterr().err
    assert f"knows a newer session of work/private, {newest}" in said
    assert f"--session {latest[0]}" in said
    assert restore("--session", latest[0]) == 0 and made.contents() == latest[1]


def test_a_session_that_dom0_was_not_told_of(
    made: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = made.agent()

    def lost(qube: str, volume: str, session: bytes) -> None:
        raise AgentError("cut")

    agent.ask_commit = lost  # type: ignore[method-assign, assignment]
    time.sleep(1.1)  # sessions differ by their seconds
    with pytest.raises(AssertionError, match="cut"):
        made.backup(agent=agent)
    latest = list(made.images().items())[-1]
    capsys.readouterr()
    assert restore() == 1 and f"does not know yet that {latest[0]}" in capsys.readouterr().err
    assert restore("--session", latest[0]) == 0 and made.contents() == latest[1]
    made.backup()
    assert restore() == 0


def test_dom0_knows_no_session(made: Site, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(made.state / "volumes")
    latest, before = list(made.images().items())[-1], made.contents()
    capsys.readouterr()
    assert restore() == 1 and made.contents() == before
    assert "dom0 knows no session of work/private" in capsys.readouterr().err
    assert cli.main(["--caller", "backup-vm", "verify", "work/private"]) == 0
    assert "dom0 knows no session as the newest" in capsys.readouterr().err
    assert restore("--session", latest[0]) == 0 and made.contents() == latest[1]
