# SPDX-License-Identifier: GPL-2.0-or-later
"""What a backup VM can pass off as the newest session, and what it can have restored that nobody
asked for.
"""

import os
import random
import shutil
import time

import pytest

from dom0_agent import notify
from dom0_agent.rpc.services import restore
from dom0_agent.tracking.state import VolumeState
from tests.attack.kit import Attacker, Stream, named
from tests.kit import change
from wire import CLAIMED_SEQUENCE, LAST_SEQUENCE
from wire.chunks import ZERO_ID
from wire.merkle import chunk_count
from wire.messages import CHUNK_HEAD, KIND_CHUNK, KIND_OFFER, KIND_RECORD, Offer, Request
from wire.names import BadName, Restoring, parse_restoring
from wire.status import STATUS_OLDER, STATUS_UNKNOWN, Code


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What dom0's desktop shows."""
    shown: list[str] = []

    def show(title: str, text: str, urgent: bool = False) -> bool:
        shown.append(f"{'! ' if urgent else ''}{text}")
        return True

    monkeypatch.setattr(restore, "notify", show)
    return shown


def hidden(attacker: Attacker, number: int) -> tuple[Stream, Offer]:
    """A whole session that was begun with a number, extracted, and aborted, so that dom0 forgets
    it.
    """
    frames = attacker.frames("Snapshot", attacker.request(bytes(16), number))
    offer = Offer.parse(next(payload for kind, payload in frames if kind == KIND_OFFER))
    ids, sealed, record = [ZERO_ID] * chunk_count(offer.size, offer.chunk_size), {}, b""
    first: dict[bytes, bytes] = {}
    for kind, payload in attacker.frames("Extract", attacker.request(offer.session)):
        if kind == KIND_CHUNK:
            at, ids[at] = CHUNK_HEAD.unpack_from(payload)
            body = payload[CHUNK_HEAD.size :]
            sealed[at] = first.setdefault(ids[at], body) if body else first[ids[at]]
        elif kind == KIND_RECORD:
            record = payload
    assert attacker.call("Abort", attacker.request(offer.session)).code == Code.OK
    return Stream(record, ids, sealed), offer


@pytest.mark.parametrize("number", [0, 1, 2, 3, 1 << 20, CLAIMED_SEQUENCE])
def test_an_aborted_session_is_an_older_one(attacker: Attacker, number: int) -> None:
    site = attacker.site
    stale, offer = hidden(attacker, number)
    change(site.image(), random.Random(1), resize=False)
    site.backup()
    now = site.contents()
    newest = attacker.stream()
    assert attacker.verify(newest).flags == 0
    assert attacker.verify(stale).flags == STATUS_OLDER
    attacker.refused(lambda: attacker.restore(stale, older=False), Code.OLDER)
    attacker.refused(lambda: attacker.restore(attacker.stream(0), older=False), Code.OLDER)
    assert attacker.restore(newest, older=False).code == Code.OK
    assert site.contents() == now
    assert attacker.restore(stale).flags == STATUS_OLDER
    assert named(stale.record) != named(newest.record)  # the prompt tells them apart


def test_from_the_highest_claim_on_numbers_go_up_by_one(attacker: Attacker) -> None:
    """Or a caller could claim its way up to numbers that no archive takes."""
    claims = (CLAIMED_SEQUENCE, CLAIMED_SEQUENCE + 1, CLAIMED_SEQUENCE, 0)
    numbers = [hidden(attacker, number)[1].sequence for number in claims]
    assert numbers == list(range(CLAIMED_SEQUENCE + 1, CLAIMED_SEQUENCE + 5))
    request = attacker.request(number=CLAIMED_SEQUENCE + 5)
    attacker.refused(lambda: attacker.call("Snapshot", request), Code.BAD_REQUEST)
    attacker.site.backup()
    assert list(attacker.site.images().values())[-1] == attacker.site.contents()


def test_no_session_is_begun_that_no_archive_would_take(attacker: Attacker) -> None:
    """A caller can begin and give up a million of them."""
    hidden(attacker, CLAIMED_SEQUENCE)
    store = VolumeState(attacker.site.state, "work", "private")
    with store.locked() as state:
        (progress,) = state.follows.values()
        progress.mark = LAST_SEQUENCE - 1
        store.save(state)
    assert hidden(attacker, 0)[1].sequence == LAST_SEQUENCE
    attacker.refused(lambda: attacker.call("Snapshot", attacker.request()), Code.INTERNAL)


def test_numbers_go_up_with_every_session_begun(attacker: Attacker) -> None:
    numbers = [hidden(attacker, number)[1].sequence for number in (0, 5, 0, 1 << 32, 3)]
    assert numbers == sorted(set(numbers)) and numbers[-1] == (1 << 32) + 2
    for impossible in (CLAIMED_SEQUENCE + 1, (1 << 63) - 1, (1 << 64) - 1):
        attacker.refused(
            lambda n=impossible: attacker.call("Snapshot", attacker.request(number=n)),
            Code.BAD_REQUEST,
        )
    attacker.site.backup()
    assert list(attacker.site.images().values())[-1] == attacker.site.contents()
    # What was claimed must not outlive dom0's memory.
    shutil.rmtree(attacker.site.state / "volumes")
    attacker.site.backup()
    assert list(attacker.site.images().values())[-1] == attacker.site.contents()


def test_no_two_sessions_have_one_name(attacker: Attacker) -> None:
    """Sessions are asked for by their times, aborted ones, too."""
    now, times = int(time.time()), list[int]()
    for proposed in (now + 300, now - 400, now + 300, now + 590, now - 590, now + 300):
        frames = attacker.frames("Snapshot", attacker.request(time=proposed))
        offer = Offer.parse(next(payload for kind, payload in frames if kind == KIND_OFFER))
        assert attacker.call("Abort", attacker.request(offer.session)).code == Code.OK
        times.append(offer.time)
    assert times == sorted(set(times)) and abs(times[-1] - now) < 700


def test_without_dom0s_memory_every_session_needs_the_word(attacker: Attacker) -> None:
    for path in attacker.site.state.rglob("state.json"):
        path.unlink()
    newest = attacker.stream()
    assert attacker.verify(newest).flags == STATUS_OLDER | STATUS_UNKNOWN
    attacker.refused(lambda: attacker.restore(newest, older=False), Code.OLDER)
    assert attacker.restore(newest).code == Code.OK
    attacker.site.backup()
    assert attacker.restore(attacker.stream(), older=False).code == Code.OK


def test_what_is_sent_is_what_was_asked_for(attacker: Attacker, told: list[str]) -> None:
    old, new = attacker.stream(0), attacker.stream()
    vault = attacker.stream(name="vault/private")

    def ask(stream: Stream, target: str | None, argument: str) -> Code:
        sent = attacker.request() + stream.to_bytes()
        return Code(attacker.call("Restore", sent, target, argument).code)

    before = attacker.everything()
    session, wrong = named(new.record), Code.NOT_AS_ASKED
    assert ask(vault, "vault", f"work+private+{named(vault.record)}") == wrong
    assert ask(new, "vault", f"work+private+{session}") == wrong
    assert ask(new, None, f"work+private+{session}") == wrong
    assert ask(new, "work", f"vault+private+{session}") == wrong
    assert ask(new, "work", f"dom0+private+{session}") == wrong
    assert ask(new, "work", "work+private+20260101-000000+older") == wrong
    assert ask(old, "work", f"work+private+{session}") == wrong
    assert ask(old, "work", f"work+private+{session}+older") == wrong
    assert ask(vault, "work", f"work+private+{named(vault.record)}") == Code.WRONG_VOLUME
    assert ask(new, "work", f"work+root+{session}") == Code.NO_VOLUME
    for malformed in ("", "private+", "work+private", f"work+private+{session}+", "work+private+x"):
        assert ask(new, "work", malformed) == Code.BAD_REQUEST
    for malformed in (f"work+private+{session}+newer", f"work+private+{session}+older+older"):
        assert ask(new, "work", malformed) == Code.BAD_REQUEST
    assert attacker.everything() == before and not told
    assert ask(new, "work", f"work+private+{session}") == Code.OK
    assert ask(old, "work", f"work+private+{named(old.record)}+older") == Code.OK
    first, second = told
    assert f"work/private of {session}" in first and "newest" not in first
    assert second.startswith("! ") and "not the newest session known" in second


def test_requests_say_nothing_that_means_nothing(attacker: Attacker) -> None:
    archive = attacker.archive_id()
    for called, fields in (
        ("List", {"session": b"s" * 16}),
        ("Monitor", {"number": 1}),
        ("Commit", {"number": 1}),
        ("Abort", {"time": 1}),
        ("Verify", {"label": "tests"}),
        ("Snapshot", {"flags": 1}),
        ("Extract", {"flags": 2}),
        ("Enroll", {"number": 7}),
    ):
        raw = Request(archive=archive, **fields).build()  # type: ignore[arg-type]
        attacker.refused(lambda c=called, r=raw: attacker.call(c, r), Code.BAD_REQUEST)


def test_extract_from_a_chunk_that_is_not_there(attacker: Attacker) -> None:
    frames = attacker.frames("Snapshot", attacker.request())
    offer = Offer.parse(next(payload for kind, payload in frames if kind == KIND_OFFER))
    chunks = chunk_count(offer.size, offer.chunk_size)
    for number in (chunks + 1, 1 << 32, (1 << 64) - 1):
        attacker.refused(
            lambda n=number: attacker.call("Extract", attacker.request(offer.session, n)),
            Code.BAD_REQUEST,
        )
    assert attacker.call("Extract", attacker.request(offer.session, chunks)).code == Code.OK


def test_the_arguments_grammar_has_one_reading() -> None:
    for asked in (
        Restoring("work", "private", "20261123-061500"),
        Restoring("x" * 63, "y" * 63, "20261123-061500", True),
    ):
        assert parse_restoring(asked.argument()) == asked and len(asked.argument()) < 200
    for untrusted in ("older+older+older", "a+b+20261123-061500 ", "a+b+20261123-06150\u0661", "+"):
        with pytest.raises(BadName):
            parse_restoring(untrusted)


def test_nobody_at_the_desktop_keeps_no_restore(
    attacker: Attacker, monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    monkeypatch.setattr(notify, "RUN", tmp_path)
    assert attacker.restore(attacker.stream()).code == Code.OK
