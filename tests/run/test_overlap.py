# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls of one run that overlap: how many at once, and what becomes of the others when one fails or
the run dies.
"""

import os
import random
import threading
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.agent.call import Call
from backup_vm.agent.client import Agent
from backup_vm.agent.transport import Connection
from backup_vm.archive import pack_writer
from backup_vm.archive.pack_writer import PackWriter
from backup_vm.archive.packs import NewPack
from backup_vm.errors import AgentError
from backup_vm.jobs import overlap
from backup_vm.jobs.backup import BackupRun
from backup_vm.jobs.outcome import Report
from backup_vm.jobs.receiving import Coming
from backup_vm.terminal.progress import Progress
from dom0_agent.rpc import dispatch
from dom0_agent.rpc.limits import HEAVY
from tests.in_process import InProcess
from tests.kit import GRAIN, Site, change, fill
from tests.patience import PATIENCE
from wire.messages import Offer, VolumeEntry
from wire.stream import Reader

NAMES = tuple(f"q{number}/private" for number in range(7))


class _Asked:
    """The stream of a call whose request has come: a first byte was waited for."""

    def __init__(self, stream: Reader) -> None:
        self._first, self._stream = bytes(stream.read(1)), stream

    def read(self, size: int, /) -> bytes | memoryview:
        first, self._first = self._first, b""
        return first or self._stream.read(size)


@pytest.fixture
def many(tmp_path: Path) -> Site:
    """A site of several volumes that were backed up once, and have changed a little since."""
    site = Site(tmp_path / "site", volumes=NAMES)
    for seed, name in enumerate(NAMES):
        fill(site.image(name), 8 * GRAIN, seed)
    site.backup()
    disturb(site, 1)
    return site


def disturb(site: Site, seed: int) -> None:
    for number, name in enumerate(NAMES):
        change(site.image(name), random.Random(100 * seed + number), resize=False)


class Failing(InProcess):
    """dom0 refuses a service for one qube; or the run dies at one of its calls."""

    def __init__(self, config: Path, service: str, qube: str, at: int = -1) -> None:
        super().__init__(config)
        self.service, self.qube, self.left = service, qube, at

    def start(
        self, name: str, qube: str | None, volume: str, stdin: IO[bytes] | None = None
    ) -> Connection:
        self.left -= 1
        if self.left == 0:
            raise MemoryError  # as good as any death: nobody handles it
        if (name, qube) == (self.service, self.qube):
            volume = "nothing"  # which dom0 refuses
        return super().start(name, qube, volume, stdin)


def run(site: Site, agent: Agent) -> Report:
    with site.open(True) as archive:
        agent.use(archive.parameters.archive, archive.parameters.chunk_size)
        try:
            return BackupRun(archive, agent, Progress()).run(agent.list())
        finally:
            agent.close()


def all_there(site: Site) -> None:
    assert [list(site.images(name).values())[-1] for name in NAMES] == [
        site.image(name).read_bytes() for name in NAMES
    ]
    assert site.scrubbed() == []


@pytest.mark.parametrize(
    "service, qube", [("Snapshot", "q0"), ("Snapshot", "q6"), ("Extract", "q3"), ("Commit", "q6")]
)
def test_one_that_fails_leaves_the_others(many: Site, service: str, qube: str) -> None:
    report = run(many, Agent(Failing(many.config, service, qube)))
    others = [name for name in NAMES if not name.startswith(qube)]
    assert [name for name, _ in report.failed] == [f"{qube}/private"]
    assert sorted(done.name for done in report.done) == others
    for name in others:
        assert list(many.images(name).values())[-1] == many.image(name).read_bytes()
    many.backup()
    all_there(many)


@pytest.mark.parametrize("at", [3, 9, 16, 21])
def test_a_run_that_dies_among_its_calls_is_made_up_for(many: Site, at: int) -> None:
    with pytest.raises(MemoryError):
        run(many, Agent(Failing(many.config, "", "", at)))
    disturb(many, 2)
    many.backup()
    all_there(many)


def test_dom0_is_asked_for_no_more_at_once_than_it_answers(
    many: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve, lock = dispatch._serve, threading.Lock()
    running: dict[str, int] = {}
    most: dict[str, int] = {}

    def counted(call: dispatch.Call) -> object:
        asked, name = _Asked(call.stdin), call.asked.service
        with lock:
            running[name] = running.get(name, 0) + 1
            most[name] = max(most.get(name, 0), running[name])
        try:
            return serve(dispatch.Call(call.asked, call.config, asked, call.stdout))
        finally:
            with lock:
                running[name] -= 1

    monkeypatch.setattr(dispatch, "_serve", counted)
    many.backup()
    assert most["Extract"] <= HEAVY.caller and most["Snapshot"] <= HEAVY.caller
    disturb(many, 3)
    most.clear()
    monkeypatch.setattr(overlap, "LITTLE", GRAIN - 1)  # all are large now
    many.backup()
    assert most["Extract"] == 1
    all_there(many)


@given(st.integers(0, 20), st.sets(st.integers(0, 20)))
def test_in_turn_asks_a_few_ahead_in_order(count: int, failing: set[int]) -> None:
    asked: list[int] = []
    answered: list[int] = []

    def action(thing: int) -> overlap.Answer[int]:
        asked.append(thing)
        if thing in failing:
            raise AgentError(str(thing))
        return lambda: thing

    for thing, answer in overlap.in_turn(range(count), action):
        assert len(asked) - len(answered) <= overlap.AHEAD + 1
        answered.append(thing)
        if thing in failing:
            with pytest.raises(AgentError, match=str(thing)):
                answer()
        else:
            assert answer() == thing
    assert asked == answered == list(range(count))


def test_what_was_asked_and_is_not_wanted_is_hung_up_on(many: Site) -> None:
    before = len(os.listdir("/proc/self/fd"))
    agent = many.agent()
    with many.open() as archive:
        agent.use(archive.parameters.archive, archive.parameters.chunk_size)
        for volume in agent.list():
            agent.ask_snapshot(volume.qube, volume.volume, bytes(16), 0, 0)
        agent.close()
    assert len(os.listdir("/proc/self/fd")) <= before
    many.backup()
    all_there(many)


def test_no_call_waits_behind_one_that_waits_for_the_store(
    many: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dom0 would take the backup VM for one that has stopped reading."""
    running, most = set[str](), 0
    begin, end = BackupRun._begin, BackupRun._take_in

    def begun(run: BackupRun, volume: VolumeEntry, offer: Offer) -> overlap.Answer[None]:
        nonlocal most
        running.add(volume.name)
        most = max(most, len(running))
        return begin(run, volume, offer)

    def taken(run: BackupRun, coming: Coming, call: Call) -> None:
        end(run, coming, call)
        running.discard(coming.volume.name)

    monkeypatch.setattr(BackupRun, "_begin", begun)
    monkeypatch.setattr(BackupRun, "_take_in", taken)
    run(many, many.agent())
    assert most == overlap.AHEAD + 1
    disturb(many, 4)
    monkeypatch.setattr(pack_writer, "pack_size", lambda _: GRAIN)
    most = 0
    run(many, many.agent())
    assert most <= 2, "a pack that is filled, and one that is on its way"
    all_there(many)


def test_of_a_slow_store_a_little_is_taken_all_the_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, released, taken = Site(tmp_path / "site"), threading.Event(), 0
    site.image().write_bytes(random.Random(1).randbytes(40 * GRAIN))
    finish, chunk = NewPack.finish, PackWriter.chunk

    def slow(pack: NewPack) -> None:
        assert released.wait(PATIENCE), "dom0 waits for what takes nothing"
        finish(pack)

    def counted(writer: PackWriter, *words: Any) -> None:
        nonlocal taken
        taken += 1
        if taken == 30:
            released.set()
        chunk(writer, *words)

    monkeypatch.setattr(NewPack, "finish", slow)
    monkeypatch.setattr(PackWriter, "chunk", counted)
    monkeypatch.setattr(pack_writer, "pack_size", lambda _: 4 * GRAIN)
    monkeypatch.setattr(pack_writer, "LONGEST", 0.01)
    monkeypatch.setattr(pack_writer, "MEANWHILE", 2 * GRAIN)
    site.backup()
    assert list(site.images().values()) == [site.contents()]
    assert site.scrubbed() == []
