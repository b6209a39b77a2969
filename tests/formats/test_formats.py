# SPDX-License-Identifier: GPL-2.0-or-later
"""Archives of every released format, kept as files: all that reads reads them, and a backup appends
to a copy.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dom0_agent.admin import cli as agent_cli
from tests.commands import Commands
from tests.conftest import cannot
from tests.formats.make import ABOUT, EXPORTED, KEYS, make
from tests.kit import GRAIN, Site, own_domains
from tests.patience import PATIENCE
from wire import FORMAT, VERSION

HERE = Path(__file__).parent
READER = HERE.parent.parent / "docs/reader.py"
KEPT = sorted(path.parent for path in HERE.glob(f"*/{ABOUT}"))

RELEASED: dict[str, str] = {}
"""Folders of released formats and the digest of all that is in them, as ``digest`` gives it: they
are never changed. README.md says how a line comes here.
"""


def about(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / ABOUT).read_text())
    return found


def digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        part = hashlib.sha256(path.read_bytes()).hexdigest()
        whole.update(f"{part} {path.relative_to(folder).as_posix()}\n".encode())
    return whole.hexdigest()


class Kept:
    """A copy of a kept archive, with the commands on it."""

    def __init__(self, folder: Path, to: Path, commands_for: Callable[[Site], Commands]) -> None:
        self.folder, self.about = folder, about(folder)
        self.sessions = {
            (volume, session): held
            for volume, series in self.about["volumes"].items()
            for session, held in series.items()
        }
        self.site = Site(to / "site", volumes=tuple(self.about["volumes"]), make=False)
        self.site._make()
        shutil.copytree(folder / "archive", self.site.archive)
        self.commands = commands_for(self.site)
        self.commands.passphrase.write_text(self.about["passphrase"] + "\n")

    def is_right(self, raw: bytes, volume: str, session: str) -> bool:
        held = self.sessions[volume, session]
        return (len(raw), hashlib.sha256(raw).hexdigest()) == (held["size"], held["sha256"])


@pytest.fixture(params=KEPT, ids=[path.name for path in KEPT])
def kept(
    request: pytest.FixtureRequest, tmp_path: Path, commands_for: Callable[[Site], Commands]
) -> Kept:
    return Kept(request.param, tmp_path, commands_for)


def test_each_format_is_kept_and_what_was_released_is_as_it_was() -> None:
    told = {path.name: about(path) for path in KEPT}
    assert FORMAT in {one["format"] for one in told.values()}
    for path in KEPT:
        if told[path.name]["released"]:
            assert RELEASED[path.name] == digest(path), f"{path}: see README.md there"
    assert set(RELEASED) <= set(told)


def test_what_is_not_released_is_of_todays_format_and_no_release_leaves_it_so() -> None:
    """A release is a version that the changelog gives a date."""
    changelog = HERE.parent.parent / "CHANGELOG.md"
    lines = changelog.read_text().splitlines() if changelog.exists() else []
    dated = re.compile(rf"## .*\b{re.escape(VERSION)}\b.*\b\d{{4}}-\d\d-\d\d\b")
    released = any(dated.match(line) for line in lines)
    for path in KEPT:
        if not (told := about(path))["released"]:
            assert told["format"] == FORMAT, f"{path} is to be made again; see README.md there"
            assert not released, f"{path} is of a release now; see README.md there"


def test_it_can_be_made_again(tmp_path: Path) -> None:
    """The same volumes hold the same, and the files are those that are kept."""
    make(tmp_path / "new")
    (today,) = (path for path in KEPT if about(path)["format"] == FORMAT)
    old, new = about(today)["volumes"], about(tmp_path / "new")["volumes"]
    assert {name: list(one.values()) for name, one in old.items()} == {
        name: list(one.values()) for name, one in new.items()
    }
    kinds = [
        sorted(path.suffix for path in folder.rglob("*") if path.is_file())
        for folder in (today, tmp_path / "new")
    ]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("secret", ["passphrase", "recovery_key"])
def test_sessions_are_listed_verified_and_scrubbed(kept: Kept, secret: str) -> None:
    kept.commands.passphrase.write_text(kept.about[secret] + "\n")
    listed = {
        (f"{volume['qube']}/{volume['volume']}", session["session"]): session
        for volume in kept.commands.keyed("list")["volumes"]
        for session in volume["sessions"]
    }
    assert {key: one["size"] for key, one in listed.items()} == {
        key: held["size"] for key, held in kept.sessions.items()
    }
    assert [one["tags"] for one in listed.values() if one["tags"]] == [["kept"]]
    kept.commands.keyed("verify", "--session", "all")
    kept.commands.run("scrub")


def test_every_image_is_assembled(kept: Kept) -> None:
    target = kept.site.root / "image"
    for volume, session in kept.sessions:
        words = ("assemble", volume, "--session", session, "-o", str(target))
        kept.commands.run(*words, "--passphrase-file", str(kept.commands.passphrase))
        assert kept.is_right(target.read_bytes(), volume, session)
        target.unlink()


def test_the_second_reader_reads_it(kept: Kept, tmp_path: Path) -> None:
    environment = {"SPARSEBAK_PASSPHRASE_FILE": str(kept.commands.passphrase)}
    for at, (volume, session) in enumerate(kept.sessions):
        target = tmp_path / f"image-{at}"
        words = ("assemble", volume, session, str(target))
        subprocess.run(
            [sys.executable, str(READER), str(kept.site.archive), *words],
            env=environment, check=True,
        )  # fmt: skip
        assert kept.is_right(target.read_bytes(), volume, session)


def test_a_session_is_exported_and_the_kept_one_comes_back(kept: Kept) -> None:
    volume, session = next(reversed([key for key in kept.sessions if key[0] == "work/private"]))
    key = ("--passphrase-file", str(kept.commands.passphrase))
    again = kept.site.root / "again.sbx"
    kept.commands.run("export", volume, "--session", session, "-o", str(again), *key)
    assert again.read_bytes() == (kept.folder / EXPORTED).read_bytes()
    kept.commands.run("delete", volume, "--yes", *key)
    kept.commands.run("import", str(kept.folder / EXPORTED), *key)
    raw = kept.site.root / "raw"
    words = ("export", volume, "--session", session, "--format", "raw", "-o", str(raw))
    kept.commands.run(*words, *key)
    assert kept.is_right(raw.read_bytes(), volume, session)


def test_it_is_mounted(kept: Kept) -> None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        cannot("there is no /dev/fuse to use")
    folder = kept.site.root / "mounted"
    folder.mkdir()
    words = ("mount", "work/private", folder, "--passphrase-file", kept.commands.passphrase)
    process = subprocess.Popen([Path(sys.executable).parent / "sparsebak", "-q", *words])
    try:
        deadline = time.monotonic() + PATIENCE
        while not folder.is_mount():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        for volume, session in kept.sessions:
            if volume == "work/private":
                assert kept.is_right((folder / f"{session}.img").read_bytes(), volume, session)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


def test_a_new_dom0_takes_it_over_and_appends(kept: Kept) -> None:
    """What is read is not touched; only what changed is stored."""
    site, (volume, session) = kept.site, list(kept.sessions)[1]
    words = ("keys", "import", "tests", str(kept.folder / KEYS), "--caller", "backup-vm")
    secret = ("--passphrase-file", str(kept.commands.passphrase))
    assert agent_cli.main(["--config", str(site.config), *words, *secret]) == 0
    before = {path: path.read_bytes() for path in site.archive.rglob("*.pack")}
    for name in site.volumes:
        newest = max(one for volume, one in kept.sessions if volume == name)
        target = ("assemble", name, "--session", newest, "-o", str(site.image(name)))
        site.image(name).unlink()
        kept.commands.run(*target, *secret)
    with open(site.image(volume), "r+b") as file:
        file.write(b"something else")
    with own_domains():
        done = {one.qube: one for one in site.backup().done}
        assert done["vault"].stored == 0 and 0 < done["work"].stored < GRAIN
        with open(site.image(volume), "r+b") as file:
            file.write(b"and again")
        assert not any(one.full for one in site.backup().done)
    assert {path: path.read_bytes() for path in before} == before
    images = site.images(volume)
    assert len(images) == 4 and kept.is_right(images[session], volume, session)
    assert list(images.values())[-1] == site.contents(volume)
    site.verify_all()
    assert site.scrubbed() == []
