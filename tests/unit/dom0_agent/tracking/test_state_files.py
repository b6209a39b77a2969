# SPDX-License-Identifier: GPL-2.0-or-later
"""A volume's state on a disk that fails, and of other versions."""

import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from backup_vm.agent.call import RefusedError
from dom0_agent.admin import cli
from dom0_agent.keyring import Keyring
from dom0_agent.rpc.dispatch import Call
from dom0_agent.rpc.volume_call import VolumeCall
from dom0_agent.tracking.state import FORMAT, VolumeState, known_volumes
from tests.faultfs import Fault, FaultFS
from tests.kit import GRAIN, Site, change, fill
from wire.status import Code, Refused


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(Refused) as caught:
        action()
    assert caught.value.code in (Code.INTERNAL, Code.BUSY, Code.NO_ARCHIVE)
    return str(caught.value)


def test_a_state_of_another_version_is_not_touched(site: Site) -> None:
    fill(site.image(), 3 * GRAIN)
    site.backup()
    path = VolumeState(site.state, "work", "private").directory / "state.json"
    path.write_text('{"format": 99}')
    refused(VolumeState(site.state, "work", "private").load)
    assert cli.main(["--config", str(site.config), "monitor"]) == 1
    assert path.read_text() == '{"format": 99}'


def test_who_waited_for_a_volume_that_was_forgotten_is_alone_with_it(tmp_path: Path) -> None:
    store, found = VolumeState(tmp_path, "work", "private"), list[bool]()

    def wait() -> None:
        with store.alone():
            found.append((store.directory / "lock").exists())

    with store.alone():
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.1)
        shutil.rmtree(store.directory)
    waiting.join()
    assert found == [True]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: '{"format": 1}',
        lambda text: '{"format": 1, "follows": 3}',
        lambda text: text.replace('"size": 196608', '"size": 196609', 1),
        lambda text: text.replace('"check": "', '"check": "0', 1),
    ],
)
def test_a_damaged_state_is_set_aside_and_the_volume_compared(
    site: Site, damage: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    fill(site.image(), 3 * GRAIN)
    site.backup()
    path = VolumeState(site.state, "work", "private").directory / "state.json"
    whole = path.read_text()
    path.write_text(damage(whole))
    assert path.read_text() != whole
    assert site.snapshots()
    with open(site.image(), "r+b") as file:
        file.write(b"something else")
    capsys.readouterr()
    (done,) = site.backup().done
    assert "set aside as state.json.damaged" in capsys.readouterr().err
    assert done.full and list(site.images().values())[-1] == site.contents()
    assert path.with_name("state.json.damaged").read_text() == damage(whole)
    assert len(site.snapshots()) == 1
    (done,) = site.backup().done
    assert not done.full


def test_another_volumes_state_is_set_aside(tmp_path: Path) -> None:
    """As whoever copies a folder of the state for a qube's clone leaves it: nothing of the one is
    sealed as the other's, and no snapshot of it is dropped.
    """
    site = Site(tmp_path / "site", volumes=("work/private", "vault/private"))
    for seed, name in enumerate(site.volumes):
        fill(site.image(name), 5 * GRAIN, seed)
    site.backup()
    vault, work = (VolumeState(site.state, name, "private").directory for name in ("vault", "work"))
    with site.open() as archive:
        agent = site.agent(archive)
        listed = next(entry for entry in agent.list() if entry.qube == "vault")
        offer = agent.snapshot("vault", "private", listed.session, 1, 0)
        shutil.rmtree(work)
        shutil.copytree(vault, work)
        with (
            pytest.raises(RefusedError, match="no such session"),
            agent.extract("work", "private", offer.session, 0) as reply,
        ):
            list(reply.frames())
    assert (work / "state.json.damaged").read_bytes() == (vault / "state.json").read_bytes()
    assert len(site.snapshots("vault/private")) == 1
    fill(site.image(), 5 * GRAIN, 3)
    for _ in range(2):
        site.backup()
        assert list(site.images().values())[-1] == site.contents()
    assert list(site.images("vault/private").values())[-1] == site.contents("vault/private")
    site.verify_all()


@pytest.mark.parametrize("number", [1, 2])
def test_a_state_from_before_the_release_is_set_aside(
    site: Site, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(site.image(), 3 * GRAIN)
    site.backup()
    path = VolumeState(site.state, "work", "private").directory / "state.json"
    older = path.read_text().replace(f'"format": {FORMAT}', f'"format": {number}')
    path.write_text(older)
    (done,) = site.backup().done
    assert done.full and done.stored == 0
    assert f"is of format {number}, from before the first release" in capsys.readouterr().err
    assert path.with_name("state.json.damaged").read_text() == older
    assert not site.backup().done[0].full


def test_names_that_cannot_be_are_no_volumes(site: Site) -> None:
    (site.state / "volumes/../volumes/-rf/x").mkdir(parents=True)
    (site.state / "volumes/work/private").mkdir(parents=True)
    assert list(known_volumes(site.state)) == [("work", "private")]


@pytest.mark.parametrize("error", ["EIO", "EUCLEAN", "EBADMSG", "ENODATA"])
def test_a_state_disk_that_lost_a_file(tmp_path: Path, faultfs: FaultFS, error: str) -> None:
    """What btrfs, XFS and ext4 answer, or the disk itself by XFS. The volume is compared as a
    whole, and the others are backed up.
    """
    (tmp_path / "site").mkdir()
    (tmp_path / "site/dom0").symlink_to(faultfs.path)
    site = Site(tmp_path / "site", volumes=("work/private", "vault/private"))
    for seed, name in enumerate(site.volumes):
        fill(site.image(name), 5 * GRAIN, seed)
    site.backup()
    faultfs.fail(Fault("open", error, path="volumes/work/private/*.ids"))
    for seed in range(2, 4):
        fill(site.image(), 5 * GRAIN, seed)
        done = {one.qube: one.full for one in site.backup().done}
        assert done == {"work": True, "vault": False}
    faultfs.fail()
    assert not site.backup().done[0].full  # it was written as another file
    faultfs.fail(Fault("open", error, path="volumes/work/private/state.json", times=2))
    assert {one.qube: one.full for one in site.backup().done} == {"work": True, "vault": False}
    assert (faultfs.real / "volumes/work/private/state.json.damaged").exists()
    site.verify_all()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path) -> None:
    (path / "within").mkdir(parents=True)


def _without_end(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize("shown", [_fifo, _folder, _without_end])
@pytest.mark.parametrize("file", ["*.map", "*.ids", "*.ids.pages", "*.log"])
def test_what_is_no_file_of_ours_is_a_lost_one(
    site: Site, file: str, shown: Callable[[Path], None]
) -> None:
    """As a damaged file system may show it: nothing waits for it, or reads it without end."""
    fill(site.image(), 5 * GRAIN)
    site.backup()
    change(site.image(), random.Random(1))
    site.monitor()
    folder = VolumeState(site.state, "work", "private").directory
    with site.open() as archive:
        agent = site.agent(archive)
        (entry,) = agent.list()
        offer = agent.snapshot("work", "private", entry.session, 1, 0) if "log" in file else None
        for _ in range(2 if offer else 0):
            for path in folder.glob(file):
                path.unlink()
                shown(path)
            with agent.extract("work", "private", offer.session, 0) as reply:
                assert list(reply.frames())
    for path in folder.glob(file):
        path.unlink()
        shown(path)
    site.monitor()
    for _ in range(3):
        site.backup()
        assert list(site.images().values())[-1] == site.contents()
    assert not site.backup().done[0].full
    site.verify_all()


def test_a_folder_beside_the_state_and_one_named_as_a_snapshot_harm_nothing(site: Site) -> None:
    fill(site.image(), 3 * GRAIN)
    site.backup()
    beside = VolumeState(site.state, "work", "private").directory / "copies"
    like = site.pool / ".sparsebak/work/private/7-00000000.snap"
    for folder in (beside, like):
        _folder(folder)
    site.monitor()
    assert not site.backup().done[0].full
    assert beside.is_dir() and like.is_dir()


@pytest.mark.parametrize("command", ["Extract", "Commit", "Abort"])
def test_a_log_that_the_disk_lost_is_an_empty_one(
    tmp_path: Path, faultfs: FaultFS, command: str
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/dom0").symlink_to(faultfs.path)
    site = Site(tmp_path / "site")
    fill(site.image(), 5 * GRAIN)
    site.backup()
    fill(site.image(), 5 * GRAIN, 1)
    lost = Fault("open", "EIO", path="volumes/work/private/*.log", times=1)
    with site.open() as archive:
        agent = site.agent(archive)
        (listed,) = site.listed(archive)
        offer = agent.snapshot(listed.qube, listed.volume, listed.session, 1, 0)
        faultfs.fail(*[lost] * (command == "Extract"))
        with agent.extract(listed.qube, listed.volume, offer.session, 0) as reply:
            assert list(reply.frames())
        faultfs.fail(lost)
        if command == "Commit":
            agent.commit(listed.qube, listed.volume, offer.session)
        else:
            agent.abort(listed.qube, listed.volume, offer.session)
    assert faultfs.failed()
    site.backup()
    assert list(site.images().values())[-1] == site.contents()


def test_a_state_that_cannot_be_read_is_no_reason_to_back_up_nothing(
    tmp_path: Path, faultfs: FaultFS
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/dom0").symlink_to(faultfs.path)
    site = Site(tmp_path / "site", volumes=("work/private", "vault/private"))
    site.backup()
    faultfs.fail(Fault("open", "ETIMEDOUT", path="volumes/work/private/state.json"))
    with pytest.raises(AssertionError) as caught:
        site.backup()
    assert "work/private" in str(caught.value) and "vault" not in str(caught.value)
    # nor to drop a session, about which a thread of Extract asks every now and then
    (archive,) = Keyring(site.state)
    store = VolumeState(site.state, "work", "private")
    on = VolumeCall(cast(Call, None), archive, store, None)
    assert on.is_pending(bytes(16))
    faultfs.fail()
    assert not on.is_pending(bytes(16))
    assert len(site.images("vault/private")) == 2
    site.backup()
