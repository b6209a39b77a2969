# SPDX-License-Identifier: GPL-2.0-or-later
"""Two sessions of one second: a clock that went back, or a dom0 that lost its state, makes them."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.archive.packs import PackReader
from backup_vm.jobs.mount import SessionImages, shown_from, shown_sessions
from backup_vm.volumes import stored_volumes
from common.text import is_session_name, session_name, session_names
from dom0_agent.tracking import next_session
from tests.commands import Commands
from tests.kit import GRAIN, change, fill
from tests.run.test_grants import Granting
from tests.run.test_reader import read
from wire.grants import Grant

WHEN = 1795414500


@pytest.fixture
def twins(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> tuple[Commands, list[bytes]]:
    """Three sessions, the first two of one second, with what was in them."""
    site, contents = commands.site, []
    fill(site.image(), 6 * GRAIN)
    for seed, later in enumerate((0, 0, 60)):
        monkeypatch.setattr(
            next_session, "_session_time", lambda last, untrusted, at=WHEN + later: at
        )
        site.backup()
        contents.append(site.contents())
        change(site.image(), random.Random(seed), resize=False)
    return commands, contents


def test_each_has_a_name_of_its_own(twins: tuple[Commands, list[bytes]], tmp_path: Path) -> None:
    commands, contents = twins
    names, plain = commands.names(), session_name(WHEN)
    assert len(set(names)) == 3 and names[2] == session_name(WHEN + 60)
    assert all(name.startswith(f"{plain}-") for name in names[:2])
    listed = commands.run("list", "work/private")[0]
    key = ("--passphrase-file", str(commands.passphrase))
    for name, content in zip(names, contents, strict=True):
        target = tmp_path / name
        words = ("assemble", "work/private", "--session", name, "-o", str(target), *key)
        assert commands.json(*words)["session"] == name and name in listed
        assert target.read_bytes() == content
    shown = read(commands.site, commands.site.archive, "list").stdout
    rows = [line.split() for line in shown.splitlines()]
    assert [row[1] for row in rows] == names
    for wanted, code in ((plain, 1), (names[1], 0)):
        words = ("assemble", "work/private", wanted, str(tmp_path / "second-reader"))
        assert read(commands.site, commands.site.archive, *words).returncode == code
    assert (tmp_path / "second-reader").read_bytes() == contents[1]
    for beginning in (plain, plain[:8]):  # a choice between them is nobody's but the user's
        error = commands.fails(1, "verify", "work/private", "--session", beginning, *key)
        assert all(name in error for name in names[:2])
    proven = commands.keyed("verify", "work/private", "--session", "all")["sessions"]
    assert [one["session"] for one in proven] == names
    commands.run("prune", "work/private", "--session", names[0], "--yes")
    assert commands.names() == [plain, names[2]]  # nothing to tell it from


def test_a_mount_shows_both(twins: tuple[Commands, list[bytes]]) -> None:
    commands, contents = twins
    names, warned = commands.names(), list[str]()
    with commands.site.open() as archive, PackReader(archive.storage) as reader:
        keys = commands.site.keys(archive)
        (volume,) = stored_volumes(archive, keys, {})
        sessions = list(volume.sessions)
        shown = SessionImages(
            shown_sessions(archive, volume, sessions, keys, reader), warned.append
        )
        images = [name for name in shown.readdir("/", 0) if name not in (".", "..")]
        assert images == [f"{name}.img" for name in names]
        for image, content in zip(images, contents, strict=True):
            assert shown.read(f"/{image}", len(content), 0, 0) == content
    assert not warned


def test_a_grant_is_for_the_one_that_is_named(
    twins: tuple[Commands, list[bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    commands, contents = twins
    granting = Granting(commands.site, capsys)
    granting.use(commands.site)
    names = commands.names()
    where = ("--records", str(granting.records()), "-o", str(commands.site.root / "none"))
    code, err = granting.agent("grant", "work/private", *where, "--session", session_name(WHEN))
    assert code and "2 sessions" in err
    path = granting.grant("--session", names[0], "--session", names[1])
    both = Grant.parse(path.read_bytes())
    assert sorted(both.names.values()) == sorted(names[:2])
    assert [one.name for one in shown_from("backup-vm", both)] == names[:2]
    path = granting.grant("--session", names[1])
    target = commands.site.root / "image"
    granting.run("assemble", "work/private", "-o", str(target), "--grant", str(path))
    assert target.read_bytes() == contents[1]


@given(st.dictionaries(st.binary(min_size=16, max_size=16), st.integers(WHEN, WHEN + 3)))
def test_names_begin_with_the_time_and_are_its_own_where_it_is_alone(
    times: dict[bytes, int],
) -> None:
    names = session_names((time, id) for id, time in times.items())
    assert names.keys() == times.keys()
    for id, time in times.items():
        alone = list(times.values()).count(time) == 1
        assert names[id].startswith(session_name(time)) and is_session_name(names[id]) == alone
        assert alone or id.hex().startswith(names[id].rpartition("-")[2])
