# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading a folder to which another machine writes meanwhile, where flock does not reach from one
to the other.
"""

import errno
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from backup_vm.agent import transport
from backup_vm.archive import lookup
from backup_vm.archive.image import split
from backup_vm.archive.looking import LOOKS
from backup_vm.archive.packs import PackReader
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.archive.storage.workspace import LocalWorkspace
from backup_vm.errors import DamagedError, Exit, LockedError
from backup_vm.jobs import copy
from backup_vm.jobs.lazy_image import ChunkCache
from backup_vm.jobs.mount import SessionImages, shown_sessions
from backup_vm.volumes import stored_volumes
from tests import meanwhile
from tests.commands import Commands
from tests.conftest import folder_in_memory
from tests.in_process import InProcess
from tests.kit import GRAIN, Site
from tests.meanwhile import (
    CHUNKS,
    IDS,
    READINGS,
    Reading,
    Scene,
    arrives,
    interfered,
    judge,
    judge_addition,
    loses,
    prunes,
)

LONG = os.environ.get("SPARSEBAK_LONG") == "1"
POINTS = 10_000 if LONG else 2
"""At how many points of its reading, at most, a command is interfered with."""


@pytest.fixture(scope="module")
def built() -> Iterator[Scene]:
    for folder in folder_in_memory("meanwhile"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LocalStorage, "pack_size", 4 * GRAIN)
            yield Scene.build(folder / "site")


@pytest.fixture
def scene(built: Scene, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """The scene, with an archive that the test may spoil."""
    monkeypatch.setattr(LocalStorage, "pack_size", 4 * GRAIN)
    monkeypatch.setattr(LocalWorkspace, "lock", lambda *_, **__: None)
    monkeypatch.setattr(transport, "open_transport", lambda *_: InProcess(built.site.config))
    kept = built.site.archive.with_name("kept")
    shutil.copytree(built.site.archive, kept)
    yield built
    put_back(built)
    shutil.rmtree(kept)


@pytest.fixture
def commands(scene: Scene, commands_for: Callable[[Site], Commands]) -> Commands:
    return commands_for(scene.site)


def put_back(scene: Scene) -> None:
    place = scene.site.archive
    shutil.rmtree(place)
    shutil.copytree(place.with_name("kept"), place)


def points(
    commands: Commands,
    scene: Scene,
    one: Reading,
    action: Callable[[], object],
    before: Callable[[], object] = lambda: None,
) -> Iterator[tuple[int, int, str, str]]:
    """A command, interfered with at one point after another: the point, and how it ended.
    ``before`` makes the archive what it is when the command begins.
    """
    with interfered(0, lambda: None) as asked:
        assert meanwhile.run(commands, scene, one)[0] == 0
    some = range(1, asked[0] + 1)
    for point in some if len(some) <= POINTS else random.Random(one.name).sample(some, POINTS):
        put_back(scene)
        before()
        with interfered(point, action):
            yield point, *meanwhile.run(commands, scene, one)


@pytest.mark.parametrize("one", READINGS, ids=IDS)
def test_what_another_machine_prunes_is_not_called_damaged(
    scene: Scene, commands: Commands, one: Reading
) -> None:
    for point, code, out, err in points(commands, scene, one, lambda: prunes(scene.site.archive)):
        try:
            judge(scene, one, code, out, err)
        except AssertionError as error:
            raise AssertionError(f"at point {point}: {error}") from error


@dataclass
class Unfinished:
    """The scene while another machine stores its newest session: all but that file is there, and
    the catalog is made again, without its chunks, for no session lists them yet.
    """

    scene: Scene
    newest: Path

    def begin(self) -> None:
        self.newest.unlink()
        for file in self.scene.site.archive.rglob("catalog.sqlite*"):
            file.unlink()

    def end(self) -> None:
        place = self.scene.site.archive
        arrives(place.with_name("kept") / self.newest.relative_to(place), self.newest)


@pytest.fixture
def unfinished(scene: Scene) -> Unfinished:
    """The newest session is not there yet, but its packs are; and no catalog."""
    newest = scene.site.archive / meanwhile.series(scene.site.archive)[5].file
    return Unfinished(scene, newest)


@pytest.mark.parametrize("one", READINGS, ids=IDS)
def test_a_session_that_another_machine_stores_is_not_called_damaged(
    scene: Scene, commands: Commands, unfinished: Unfinished, one: Reading
) -> None:
    for point, code, out, err in points(commands, scene, one, unfinished.end, unfinished.begin):
        try:
            judge_addition(one, code, out, err)
        except AssertionError as error:
            raise AssertionError(f"at point {point}: {error}") from error


def test_a_copy_reads_a_session_that_came_after_its_catalog_was_made(
    scene: Scene, commands: Commands, unfinished: Unfinished, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = copy._prepare

    def then_it_comes(*words: Any) -> str | None:
        unfinished.end()
        return prepare(*words)

    unfinished.begin()
    monkeypatch.setattr(copy, "_prepare", then_it_comes)
    one = next(one for one in READINGS if one.name == "copy")
    code, out, err = meanwhile.run(commands, scene, one)
    judge_addition(one, code, out, err)
    assert json.loads(out)["sessions"] == len(scene.names)


def test_a_session_that_came_since_is_whole_beside_one_that_is_spoilt(
    scene: Scene, commands: Commands, unfinished: Unfinished
) -> None:
    """That something is missing of the archive does not say that these chunks are."""
    with scene.site.open() as archive:
        (found,) = archive.sessions().values()
        first, newest = ({*split(archive.image(found, found[n]).ids(0, CHUNKS))} for n in (0, -1))
        place = archive.catalog.places([one := min(first - newest)])[one]
    with open(scene.site.archive / place.pack, "r+b") as file:
        file.seek(place.offset + 40)
        file.write(bytes(40))
    unfinished.begin()
    assert commands.outcome("scrub")[0] == Exit.DAMAGED
    with scene.site.open() as archive:
        assert archive.catalog.spoilt() == {found[0].file}
        unfinished.end()
        (found,) = archive.sessions().values()
        assert lookup.places(archive, found[-1], newest).keys() == newest


LOSSES: dict[str, Callable[[Path], None]] = {
    "base": lambda place: meanwhile.loses(place, 1),
    "newest": lambda place: meanwhile.loses(place, 5),
    "packs": meanwhile.loses_packs,
}


@pytest.mark.parametrize("what", LOSSES)
@pytest.mark.parametrize("one", READINGS, ids=IDS)
def test_what_gets_lost_is_damage(
    scene: Scene, commands: Commands, one: Reading, what: str
) -> None:
    place = scene.site.archive
    for point, code, out, err in points(commands, scene, one, lambda: LOSSES[what](place)):
        try:
            meanwhile.judge_loss(scene, one, code, out, err)
        except AssertionError as error:
            raise AssertionError(f"at point {point}: {error}") from error


@pytest.mark.parametrize("what", LOSSES)
def test_what_got_lost_before_is_damage(scene: Scene, commands: Commands, what: str) -> None:
    LOSSES[what](scene.site.archive)
    for one in READINGS:
        if one.wanted == 5 and what != "newest":
            code, _, err = meanwhile.run(commands, scene, one)
            if one.name != "diff":  # which needs no pack, and names the base
                assert code == Exit.DAMAGED, (one.name, err)


def test_a_mount_reads_on_while_another_machine_prunes(scene: Scene) -> None:
    """Image files that were opened before and after, of sessions that stay and of one that goes."""
    site = scene.site
    with site.open() as archive:
        keys = site.keys(archive)
        (volume,) = stored_volumes(archive, keys, {})
        said: list[str] = []
        cache, reader = ChunkCache(), PackReader(archive.storage)
        shown = shown_sessions(archive, volume, list(volume.sessions), keys, reader, cache)
        files = SessionImages(shown, said.append)

        def read(number: int, at: int = 0) -> bytes:
            return files.read(f"/{scene.names[number]}.img", (CHUNKS - at) * GRAIN, at * GRAIN, 0)

        for number in (3, 5):
            assert read(number, 20) == scene.images[number][20 * GRAIN :]
        cache._chunks.clear()
        prunes(site.archive)
        for number in (5, 1, 4):
            assert read(number) == scene.images[number] and not said
        for number in (3, 0):
            with pytest.raises(OSError, match=str(errno.EIO)):
                read(number)
            assert "was removed by another machine while it was read" in said[0]
            said.clear()
        assert not archive.warnings
        reader.__exit__()


def test_a_scrub_of_what_is_read_only_here(
    scene: Scene, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes no lease, as no reader does."""
    monkeypatch.setattr(LocalStorage, "writable", lambda _: False)
    one = Reading("scrub", lambda *_: ["scrub"])
    for _, code, out, err in points(commands, scene, one, lambda: prunes(scene.site.archive)):
        done = json.loads(out)
        assert code == 0 and done["ok"] and not done["noted"], (out, err)
        assert err.count("\n") == 1, err  # that it was not noted, and nothing is wrong
    for what, loss in LOSSES.items():
        put_back(scene)
        with interfered(5, partial(loss, scene.site.archive)):
            code, out, err = meanwhile.run(commands, scene, one)
        assert code == Exit.DAMAGED, (what, out, err)


@pytest.mark.parametrize("same", [False, True])
def test_one_that_changes_again_and_again(scene: Scene, same: bool) -> None:
    """What is wrong each time in another way is nothing to be reported; twice the same can."""
    with scene.site.open() as archive:
        turns = iter(range(100))

        def read() -> None:
            turn, _ = next(turns), archive.sessions()
            loses(scene.site.archive, -1)
            raise DamagedError("the same" if same else f"turn {turn}")

        with pytest.raises(DamagedError if same else LockedError, match="the same|in use by"):
            archive.looking.steady(read)
        assert next(turns) == (2 if same else LOOKS)
