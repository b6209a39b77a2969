# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests of every wrong kind, in any number and at any speed."""

import io
import os
import random
import resource
import threading
import time

import pytest

from dom0_agent.rpc import dispatch, streams
from dom0_agent.rpc.heads import SERVICES
from dom0_agent.sources.file import FileSource
from dom0_agent.tracking.pending_log import PendingLog
from dom0_agent.tracking.state import VolumeState
from tests.attack.kit import Attacker
from tests.kit import GRAIN, change, in_child
from tests.patience import AT_ONCE
from wire import CLAIMED_SEQUENCE
from wire.layout import LAST_TIME
from wire.messages import Request
from wire.status import Code, Refused

NAMES = [
    "../..",
    "..",
    ".",
    "-rf",
    "--config",
    "a/b",
    "a b",
    "",
    "x" * 64,
    "\x1b[31m",
    "a\nb",
    "\u202egnp",
    "w\u00f6rk",
    "a\0b",
    "a+b",
]


@pytest.mark.parametrize("name", NAMES)
def test_names(attacker: Attacker, name: str) -> None:
    for called in SERVICES:
        request = attacker.request(bytes(16))
        if name:
            attacker.refused(
                lambda c=called, r=request: attacker.call(c, r, "work", name), Code.BAD_REQUEST
            )
        if name != "dom0":
            attacker.refused(
                lambda c=called, r=request: attacker.call(c, r, name),
                Code.BAD_REQUEST,
                Code.NO_VOLUME,
            )


@pytest.mark.parametrize("called", SERVICES)
def test_requests_of_every_wrong_length(attacker: Attacker, called: str) -> None:
    request = attacker.request()
    for length in range(len(request)):
        assert attacker.call(called, request[:length]).code == Code.BAD_REQUEST
    before = attacker.everything()
    for at in range(8):
        wrong = request[:at] + bytes([request[at] ^ 0x40]) + request[at + 1 :]
        assert attacker.call(called, wrong).code == Code.BAD_REQUEST
    assert attacker.everything() == before


@pytest.mark.parametrize("number", [1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, (1 << 64) - 1])
def test_numbers_near_the_limits(attacker: Attacker, number: int) -> None:
    at = min(number, LAST_TIME)
    for called in ("Extract", "Commit", "Abort", "Restore", "Verify"):
        request = Request(
            archive=attacker.archive_id(), session=os.urandom(16), number=number, time=at
        ).build()
        attacker.refused(
            lambda c=called, r=request: attacker.call(c, r), Code.NO_SESSION, Code.BAD_REQUEST
        )
    assert attacker.call(
        "Snapshot", Request(archive=attacker.archive_id(), number=number, time=at).build()
    ).code == (Code.OK if number <= CLAIMED_SEQUENCE else Code.BAD_REQUEST)
    site = attacker.site
    # a lie about sequence or time costs the liar a full session, and nobody anything else
    site.backup()
    assert list(site.images().values())[-1] == site.contents()
    site.verify_all()


@pytest.mark.parametrize("time", [LAST_TIME + 1, (1 << 63) - 1, (1 << 64) - 1])
def test_times_that_no_calendar_has(attacker: Attacker, time: int) -> None:
    request = Request(archive=attacker.archive_id(), time=LAST_TIME).build()
    raw = request.replace(LAST_TIME.to_bytes(8, "little"), time.to_bytes(8, "little"))
    assert raw != request
    attacker.refused(lambda: attacker.call("Snapshot", raw), Code.BAD_REQUEST)


def test_commit_of_what_was_never_sent_and_a_session_used_again(attacker: Attacker) -> None:
    with attacker.site.open() as archive:
        newest = archive.newest(attacker.site.listed(archive)[0].volume_id.hex())
    assert newest is not None
    attacker.refused(
        lambda: attacker.call("Commit", attacker.request(os.urandom(16))), Code.NO_SESSION
    )
    # Said already: nothing happens.
    assert attacker.call("Commit", attacker.request(newest.clear.session)).code == Code.OK
    assert (
        attacker.call(
            "Snapshot", attacker.request(newest.clear.session, newest.clear.sequence)
        ).code
        == Code.OK
    )
    attacker.refused(
        lambda: attacker.call("Extract", attacker.request(newest.clear.session)), Code.NO_SESSION
    )
    attacker.refused(
        lambda: attacker.call("Abort", attacker.request(newest.clear.session)), Code.NO_SESSION
    )


def test_a_flood_of_snapshots_holds_one(attacker: Attacker) -> None:
    for number in range(60):
        assert attacker.call("Snapshot", attacker.request(os.urandom(16), number)).code == Code.OK
    assert len(attacker.site.snapshots()) == 1
    attacker.site.backup()
    assert len(attacker.site.snapshots()) == 1


def test_monitor_again_and_again_takes_no_snapshots(attacker: Attacker) -> None:
    site, store = attacker.site, VolumeState(attacker.site.state, "work", "private")
    before = store.load().sequence >> 32
    for _ in range(5):
        change(site.image(), random.Random(1))
        assert attacker.call("Monitor", attacker.request()).code == Code.OK
    assert store.load().sequence >> 32 <= before + 1
    site.backup()
    assert list(site.images().values())[-1] == site.contents()


def test_hundreds_of_calls_at_once(attacker: Attacker) -> None:
    """Each is answered; what they leave is what a few calls one after another would."""
    codes: list[int] = []

    def one(seed: int) -> None:
        rng = random.Random(seed)
        called = rng.choice(["List", "Snapshot", "Commit", "Abort", "Monitor", "Extract", "Verify"])
        codes.append(
            attacker.call(called, attacker.request(rng.randbytes(16)) + rng.randbytes(400)).code
        )

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(codes) == 200 and Code.INTERNAL not in codes
    assert len(attacker.site.snapshots()) <= 2  # the base, and a pending session's
    attacker.site.backup()
    assert list(attacker.site.images().values())[-1] == attacker.site.contents()
    attacker.site.verify_all()


def test_abort_and_commit_during_extract(attacker: Attacker) -> None:
    with attacker.site.open() as archive:
        agent, entry = attacker.site.agent(archive), attacker.site.listed(archive)[0]
        offer = agent.snapshot("work", "private", entry.session, 3, 0)
        with agent.extract("work", "private", offer.session, 0) as reply:
            frames = reply.frames()
            first = next(frames, None)
            for called in ("Abort", "Commit"):
                status = attacker.call(called, attacker.request(offer.session))
                assert status.code in (Code.BUSY, Code.OK, Code.INCOMPLETE, Code.NO_SESSION)
            assert first is not None
            for _ in frames:
                pass
    attacker.site.backup()
    assert list(attacker.site.images().values())[-1] == attacker.site.contents()


class Endless:
    """Sends a request, then bytes without end."""

    def __init__(self, head: bytes) -> None:
        self.head, self.sent = head, 0

    def read(self, size: int, /) -> bytes:
        part, self.head = self.head[:size], self.head[size:]
        part += bytes(size - len(part))
        self.sent += size
        return part


@pytest.mark.parametrize("called", ["Restore", "Verify", "Extract", "Commit", "Snapshot"])
def test_a_sender_that_never_ends(attacker: Attacker, called: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sender = Endless(attacker.request(os.urandom(16)))
    status = attacker.call(called, sender)
    assert sender.sent < 1 << 20 and (status.code != Code.OK or called == "Snapshot")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


def test_a_sender_that_falls_silent_is_given_up(attacker: Attacker) -> None:
    read, write = os.pipe()
    try:
        start = time.monotonic()
        stdin = streams.PatientReader(read, patience=0.3)
        os.write(write, attacker.request() + attacker.stream().to_bytes()[:5000])
        attacker.refused(lambda: attacker.call("Restore", stdin), Code.BAD_REQUEST)
        assert 0.2 < time.monotonic() - start < AT_ONCE
    finally:
        os.close(read)
        os.close(write)


def test_a_sender_that_trickles_is_given_up(attacker: Attacker) -> None:
    """A byte now and then would hold the volume for ever."""
    read, write = os.pipe()
    raw = attacker.request() + attacker.stream().to_bytes()
    stop = threading.Event()

    def send() -> None:
        for at in range(len(raw)):
            if stop.wait(0.02):
                return
            os.write(write, raw[at : at + 1])

    thread = threading.Thread(target=send)
    thread.start()
    start = time.monotonic()
    try:
        stdin = streams.PatientReader(read, patience=0.3)
        attacker.refused(lambda: attacker.call("Verify", stdin, None, ""), Code.BAD_REQUEST)
        assert time.monotonic() - start < AT_ONCE
    finally:
        stop.set()
        thread.join()
        os.close(read)
        os.close(write)


def test_a_reader_that_trickles_is_given_up(attacker: Attacker) -> None:
    read, write = os.pipe()
    stop = threading.Event()

    def take() -> None:
        while not stop.wait(0.02):
            os.read(read, 1)

    def run() -> None:
        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        out = streams.PatientWriter(write, 0.3)
        with pytest.raises(BrokenPipeError, match="almost nothing|read nothing"):
            for _ in range(100):
                out.write(bytes(1 << 14))

    start = time.monotonic()
    assert in_child(run) == 0 and time.monotonic() - start < AT_ONCE
    os.close(read)
    os.close(write)


def test_a_slow_sender_is_waited_for(attacker: Attacker) -> None:
    read, write = os.pipe()
    raw = attacker.request() + attacker.stream().to_bytes()

    def send() -> None:
        for at in range(0, len(raw), len(raw) // 20 + 1):
            os.write(write, raw[at : at + len(raw) // 20 + 1])
            time.sleep(0.02)
        os.close(write)

    thread = threading.Thread(target=send)
    thread.start()
    assert attacker.call("Restore", streams.PatientReader(read, patience=5)).code == Code.OK
    thread.join()
    os.close(read)


def test_a_call_that_is_started_ahead_may_wait_for_its_request(attacker: Attacker) -> None:
    read, write = os.pipe()
    thread = threading.Timer(0.6, lambda: (os.write(write, attacker.request()), os.close(write)))
    thread.start()
    assert (
        attacker.call("List", streams.PatientReader(read, patience=0.1), None, "").code == Code.OK
    )
    thread.join()
    os.close(read)


def test_a_reader_that_stalls_is_given_up(attacker: Attacker) -> None:
    """Its session is free again, and can be given up, when it has taken nothing for a while."""
    site = attacker.site
    site.image().write_bytes(os.urandom(60 * GRAIN))
    with site.open() as archive:
        offer = site.agent(archive).snapshot("work", "private", bytes(16), 9, 0)
    read, write = os.pipe()
    request = attacker.request(offer.session)

    def stall() -> None:
        os.close(read)
        out = streams.PatientWriter(write, 0.3)
        environ = {"QREXEC_REMOTE_DOMAIN": "backup-vm", "QREXEC_SERVICE_ARGUMENT": "private"}
        environ |= {"QREXEC_REQUESTED_TARGET_TYPE": "name", "QREXEC_REQUESTED_TARGET": "work"}
        assert dispatch.run("Extract", environ, site.config, io.BytesIO(request), out) == 1

    keep = os.dup(read)  # open for reading all the while, and never read
    start = time.monotonic()
    assert in_child(stall) == 0
    assert time.monotonic() - start < AT_ONCE
    assert attacker.call("Abort", request).code == Code.OK
    for fd in (read, write, keep):
        os.close(fd)


def test_where_storage_is_nearly_full_sessions_that_nobody_extracts_give_way(
    attacker: Attacker, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = attacker.site
    with site.open() as archive:
        offers = [
            site.agent(archive).snapshot(qube, "private", bytes(16), 9, 0)
            for qube in ("work", "vault")
        ]
    store = VolumeState(site.state, "vault", "private")
    pending = next(iter(store.load().follows.values())).pending
    assert pending is not None
    extracting = PendingLog(store.directory / pending.log)

    def full(self: object) -> None:
        raise Refused(Code.NO_SPACE, "nearly full")

    monkeypatch.setattr(FileSource, "require_room", full)
    site.monitor()
    extracting.close()
    assert len(site.snapshots("work/private")) == 1 and len(site.snapshots("vault/private")) == 2
    assert attacker.call("Extract", attacker.request(offers[0].session)).code == Code.NO_SESSION
    assert attacker.call("Extract", attacker.request(offers[1].session), "vault").code == Code.OK
    monkeypatch.undo()
    site.backup()
    for name in site.volumes:
        assert list(site.images(name).values())[-1] == site.contents(name)
