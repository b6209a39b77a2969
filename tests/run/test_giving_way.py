# SPDX-License-Identifier: GPL-2.0-or-later
"""The qubes come first: locks, descriptors and room that monitoring and slow callers may take of
dom0.
"""

import contextlib
import io
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dom0_agent.admin import cli
from dom0_agent.admin.monitoring import Outcome, monitor
from dom0_agent.config import load
from dom0_agent.keyring import Keyring
from dom0_agent.rpc import dispatch, extraction
from dom0_agent.sources.file import FileSource
from dom0_agent.tracking.rotation import Rotation
from dom0_agent.tracking.state import State, VolumeState
from tests.attack.kit import Attacker
from tests.children import run
from tests.kit import Site, fill
from tests.patience import PATIENCE
from wire.messages import HEADER_SIZE, Offer, Status
from wire.status import Code, Refused


def environment() -> dict[str, str]:
    return {
        "QREXEC_REMOTE_DOMAIN": "backup-vm",
        "QREXEC_SERVICE_ARGUMENT": "private",
        "QREXEC_REQUESTED_TARGET_TYPE": "name",
        "QREXEC_REQUESTED_TARGET": "work",
    }


def begin(attacker: Attacker) -> Offer:
    """A session begun by one who may never end it."""
    out = io.BytesIO()
    site = attacker.site
    dispatch.run("Snapshot", environment(), site.config, io.BytesIO(attacker.request()), out)
    raw = out.getvalue()
    return Offer.parse(raw[HEADER_SIZE : HEADER_SIZE + Offer.length()])


def full(self: FileSource) -> None:
    raise Refused(Code.NO_SPACE, "the pool is 97 % full")


def test_a_slow_extract_gives_way_to_a_full_pool(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time the snapshot goes, and soon nobody has it open, though the caller takes a
    byte only now and then.
    """
    monkeypatch.setattr(extraction, "WATCH", 0.05)
    site.image().write_bytes(os.urandom(8 << 20))
    attacker = Attacker(site)
    offer = begin(attacker)
    read_end, write_end = os.pipe()
    environ = environment()

    def extract() -> None:
        with open(write_end, "wb") as out:
            dispatch.run(
                "Extract", environ, site.config, io.BytesIO(attacker.request(offer.session)), out
            )

    thread = threading.Thread(target=extract)
    thread.start()
    assert os.read(read_end, 1)
    (snapshot,) = (site.pool / ".sparsebak/work/private").iterdir()

    def held_open() -> bool:
        found = []
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/self/fd/{fd}"))
        return any(path.startswith(str(snapshot)) for path in found)

    deadline = time.monotonic() + PATIENCE
    while not held_open() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held_open()
    monkeypatch.setattr(FileSource, "require_room", full)
    site.monitor()
    assert held_open(), "it has until the next time"
    assert site.monitor() == [Outcome("work/private")]
    assert site.snapshots() == [] and not snapshot.exists()
    while held_open() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not held_open()
    sent = b""
    while data := os.read(read_end, 1 << 16):
        sent += data
    os.close(read_end)
    thread.join()
    assert Status.parse(sent[-Status.length() :]).code == Code.NO_SESSION
    monkeypatch.undo()
    site.backup()
    assert list(site.images().values())[-1] == site.contents()


def test_a_pool_that_is_gone_makes_nobody_give_way(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(site.image(), 1 << 20)
    site.backup()
    offer = begin(Attacker(site))
    site.pool.rename(site.pool.with_name("away"))
    with pytest.raises(AssertionError):
        site.monitor()
    site.pool.with_name("away").rename(site.pool)
    (progress,) = VolumeState(site.state, "work", "private").load().follows.values()
    assert progress.pending is not None and progress.pending.session == offer.session.hex()


def test_a_volume_waits_for_its_own_delta_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one volume's delta takes its time, every other volume can be locked, and no lock is
    left.
    """
    names = tuple(f"q{number}/private" for number in range(6))
    site = Site(tmp_path / "site", volumes=names)
    for name in names:
        fill(site.image(name), 1 << 18)
    site.backup()
    seen: list[str] = []
    original = Rotation.replace_base

    def slow(self: Rotation, number: int) -> int:
        for name in names:
            try:
                with VolumeState(site.state, *name.split("/")).locked(patience=0):
                    pass
            except Refused:
                seen.append(name)
        return original(self, number)

    monkeypatch.setattr(Rotation, "replace_base", slow)
    for name in names:
        fill(site.image(name), 1 << 18, 7)
    outcomes = site.monitor()
    assert [outcome.name for outcome in outcomes] == list(names)
    assert seen == list(names), "each time the one whose turn it was, alone"
    assert all(outcome.changed for outcome in outcomes)
    monkeypatch.undo()
    site.backup()
    for name in names:
        assert list(site.images(name).values())[-1] == site.contents(name)


@pytest.mark.parametrize("step", ["begin", "finish"])
def test_what_another_call_did_between_two_steps_is_kept(
    site: Site, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A backup that runs wholly between two locks of one monitor: the volume is left to the next
    one.
    """
    fill(site.image(), 1 << 20)
    site.backup()
    fill(site.image(), 1 << 20, 2)
    original, taken = VolumeState.locked, 0

    @contextlib.contextmanager
    def between(self: VolumeState, *patience: float, **named: float) -> Iterator[State]:
        nonlocal taken
        taken += 1
        if taken == (2 if step == "begin" else 3):
            monkeypatch.setattr(VolumeState, "locked", original)
            fill(site.image(), 1 << 20, 3)
            site.backup()
        with original(self, *patience, **named) as state:
            yield state

    monkeypatch.setattr(VolumeState, "locked", between)
    config = load(site.config)
    keyring = Keyring(config.state_dir)
    (outcome,) = monitor(config.state_dir, config.volumes, keyring)
    assert outcome.busy
    assert list(site.images().values())[-1] == site.contents()
    fill(site.image(), 1 << 20, 4)
    assert site.monitor()[0].changed
    assert len(site.snapshots()) == 1
    site.backup()
    assert list(site.images().values())[-1] == site.contents()


def test_hundreds_of_volumes_with_few_descriptors(tmp_path: Path) -> None:
    names = tuple(f"q{number}/private" for number in range(50))
    site = Site(tmp_path / "site", volumes=names)
    for name in names:
        site.image(name).write_bytes(name.encode())
    site.backup()

    # in a child: there no thread of another test opens files meanwhile
    def work() -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        used = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
        for name in names:
            site.image(name).write_bytes(name.encode() * 2)
        assert all(outcome.changed for outcome in site.monitor())
        assert cli.main(["--config", str(site.config), "status"]) == 0
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, hard))
        site.backup()

    (done,) = run([work], {}, memory=0)
    assert done.code == 0 and not done.fault, done
