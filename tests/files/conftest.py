# SPDX-License-Identifier: GPL-2.0-or-later
"""An archive with a session of each of a few states of a file system, with and without indexes of
their names.
"""

import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from backup_vm import cli
from backup_vm.archive.format import RECORD_AT, SESSION_HEAD_SIZE
from backup_vm.jobs.files import VolumeFiles
from common.text import session_name
from tests.files.indexed import STATES, Indexed, Listed, filled
from tests.kit import PASSPHRASE, Site
from wire.records import read_clear


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Site:
    site = Site(tmp_path_factory.mktemp("indexed") / "site")
    for state in STATES:
        filled(site.image(), state)
        site.backup()
    return site


@pytest.fixture(scope="session")
def kept(made: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of its archive, with indexes."""
    archive = tmp_path_factory.mktemp("kept") / "archive"
    shutil.copytree(made.archive, archive)
    (archive.parent / "pw").write_bytes(PASSPHRASE)
    key = ("--passphrase-file", str(archive.parent / "pw"))
    assert cli.main(["--archive", str(archive), "files", "index", "work/private", *key]) == 0
    return archive


@pytest.fixture(scope="session")
def listed(made: Site) -> Listed:
    words = ["--archive", str(made.archive), "--json", "files", "find", "work/private"]
    words += ["--passphrase-file", str(made.root / "pw"), "--session"]
    (made.root / "pw").write_bytes(PASSPHRASE)
    found = {}
    for path in sorted(made.archive.glob("volumes/*/*.session")):
        name = session_name(read_clear(path.read_bytes()[RECORD_AT:SESSION_HEAD_SIZE]).time)
        with redirect_stdout(io.StringIO()) as out:
            assert cli.main([*words, name]) == 0
        found[name] = json.loads(out.getvalue())["files"]
    return found


def site_of(made: Site, archive: Path, target: Path) -> Site:
    shutil.copytree(archive, target)
    site = Site(made.root, make=False)
    site.archive = target
    return site


@pytest.fixture
def plain(made: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Indexed:
    """The site, with a copy of its archive without an index."""
    return Indexed(site_of(made, made.archive, tmp_path / "archive"), capsys)


@pytest.fixture
def indexed(made: Site, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Indexed:
    """The same with indexes."""
    return Indexed(site_of(made, kept, tmp_path / "archive"), capsys)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sessions that are opened from here on."""
    opened: list[str] = []
    before = VolumeFiles.open

    def watched(self: VolumeFiles, session: Any, watch: bool = False) -> Any:
        opened.append(session.name)
        return before(self, session, watch)

    monkeypatch.setattr(VolumeFiles, "open", watched)
    return opened
