# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading an archive on a real server while another machine, with a cache of its own, prunes it."""

import itertools
import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from backup_vm import volumes
from backup_vm.agent import transport
from backup_vm.archive.archive import Archive
from backup_vm.archive.storage import open_storage
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.errors import Exit
from backup_vm.volumes import Named
from tests import meanwhile
from tests.commands import Commands
from tests.conftest import folder_in_memory
from tests.in_process import InProcess
from tests.kit import GRAIN, Site
from tests.meanwhile import IDS, READINGS, Reading, Scene, interfered, judge, judge_addition, prunes
from tests.remote.kit import Server
from wire.chunks import Keys

LONG = os.environ.get("SPARSEBAK_LONG") == "1"
POINTS = 12 if LONG else 1
"""At how many points of its reading a command is interfered with."""
_SOME = ("verify-all", "assemble-kept", "assemble-removed", "restore-kept", "list", "copy")
"""Which ones, unless it may take long: all of them read a folder in tests/run/test_meanwhile.py."""
_numbers = itertools.count()


@pytest.fixture(scope="module")
def built() -> Iterator[Scene]:
    for folder in folder_in_memory("meanwhile"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LocalStorage, "pack_size", 4 * GRAIN)
            yield Scene.build(folder / "site")


@pytest.fixture
def commands(
    built: Scene,
    server: Server,
    commands_for: Callable[[Site], Commands],
    monkeypatch: pytest.MonkeyPatch,
) -> Commands:
    monkeypatch.setattr(transport, "open_transport", lambda *_: InProcess(built.site.config))
    return commands_for(built.site)


def stored(scene: Scene, server: Server, monkeypatch: pytest.MonkeyPatch, without: str = "") -> str:
    """A fresh copy of the scene's archive on the server, ``without`` one of its files."""
    url = server.url(f"meanwhile-{next(_numbers)}-{random.randrange(1 << 40)}")
    storage = open_storage(url)
    for name, path in scene.files().items():
        if name.endswith((".session", ".pack", ".toml")) and name != without:
            storage.write(name, path.read_bytes())
    storage.close()
    monkeypatch.setenv("SPARSEBAK_ARCHIVE", url)
    return url


def elsewhere(tmp_path: Path, action: Callable[[], object]) -> None:
    """Do something as another machine does it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
        action()


Points = Callable[..., Iterator[tuple[int, int, str, str]]]


@pytest.fixture
def points(
    built: Scene,
    server: Server,
    commands: Commands,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Points:
    """A command, whose archive another machine changes at one point of its reading after another:
    the point, and how it ended.
    """

    def each(
        one: Reading,
        change: Callable[[str], object],
        without: str = "",
        codes: tuple[int, ...] = (0,),
    ) -> Iterator[tuple[int, int, str, str]]:
        name = IDS[READINGS.index(one)]
        stored(built, server, monkeypatch, without)
        with interfered(0, lambda: None) as asked:
            assert meanwhile.run(commands, built, one)[0] in codes
        for turn in range(POINTS):
            url = stored(built, server, monkeypatch, without)
            point = random.Random(f"{name} {turn}").randrange(1, asked[0] + 1)
            with interfered(point, partial(elsewhere, tmp_path, partial(change, url))):
                yield point, *meanwhile.run(commands, built, one)

    return each


@pytest.mark.parametrize("name", IDS if LONG else _SOME)
def test_what_another_machine_prunes_is_not_called_damaged(
    built: Scene, points: Points, name: str
) -> None:
    one = READINGS[IDS.index(name)]
    for point, code, out, err in points(one, prunes):
        if "it has been rebuilt" in err:  # it is not in the cache yet
            err = err.split("\n", 1)[1]
        try:
            judge(built, one, code, out, err)
        except AssertionError as error:
            raise AssertionError(f"at point {point}: {error}") from error


@pytest.mark.parametrize("name", ["verify-all", "assemble-kept", "list", "copy"])
def test_a_session_that_another_machine_stores_is_not_called_damaged(
    built: Scene, points: Points, name: str
) -> None:
    """Its packs are there when the command begins, and this machine has no catalog yet."""
    one, newest = READINGS[IDS.index(name)], meanwhile.series(built.site.archive)[5].file
    contents = (built.site.archive / newest).read_bytes()

    def arrives(url: str) -> None:
        with closing(open_storage(url)) as storage:
            storage.write(newest, contents)

    for point, code, out, err in points(one, arrives, newest, (0, 1)):
        try:
            judge_addition(one, code, out, err)
        except AssertionError as error:
            raise AssertionError(f"at point {point}: {error}") from error


@pytest.mark.parametrize("server", ["s3"], indirect=True)
@pytest.mark.parametrize(("number", "expected"), [(1, Exit.DAMAGED), (5, Exit.LOCKED)])
def test_a_session_that_is_gone_is_damage_where_others_need_it(
    built: Scene,
    server: Server,
    commands: Commands,
    number: int,
    expected: Exit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = stored(built, server, monkeypatch)
    lost, stored_volumes = meanwhile.series(url)[number].file, volumes.stored_volumes

    def then_it_goes(
        archive: Archive, keys: Keys | None, told: dict[str, tuple[str, str]]
    ) -> list[Named]:
        found = stored_volumes(archive, keys, told)
        elsewhere(tmp_path, lambda: open_storage(url).remove(lost))
        archive.storage.refresh()
        return found

    monkeypatch.setattr(volumes, "stored_volumes", then_it_goes)
    one = next(one for one in READINGS if one.name == "verify" and one.wanted == 5)
    code, out, err = meanwhile.run(commands, built, one)
    assert code == expected, (out, err)
    if expected == Exit.DAMAGED:
        assert not json.loads(out)["sessions"][0]["ok"] and "missing" in err
    else:
        assert "removed by another machine" in err
