# SPDX-License-Identifier: GPL-2.0-or-later
"""What a call opens: the volume's state once for each time that it takes the lock, one archive's
parameters and key once, no other archive's at all.
"""

import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from dom0_agent.tracking import rotation
from dom0_agent.tracking.state import State, VolumeState
from tests.attack.kit import Attacker
from tests.kit import Site, fill
from wire.messages import KIND_STATUS, OFFER_FULL, Offer, Status
from wire.status import Code

READ = {"state.json": "state", "archive.json": "archive", "key": "key", "agent.toml": "config"}
_opened: Counter[str] | None = None


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str | os.PathLike):
        path = Path(arguments[0])
        if path.name in READ:
            _opened[READ[path.name]] += 1
            _opened[str(path)] += 1


@pytest.fixture(scope="module", autouse=True)
def _watched() -> None:
    sys.addaudithook(_hook)  # it cannot be removed, and does nothing outside of ``reads``


def reads(attacker: Attacker, service: str, sent: bytes) -> tuple[Counter[str], bytes]:
    """How often a call that succeeds opens what, and the payload of its first frame."""
    global _opened
    _opened = Counter()
    try:
        frames = attacker.frames(service, sent)
    finally:
        opened, _opened = _opened, None
    assert frames[-1][0] == KIND_STATUS and Status.parse(frames[-1][1]).code == Code.OK
    return opened, frames[0][1]


@pytest.fixture
def attacker(site: Site) -> Attacker:
    """Of two archives, both with a session of the volume."""
    site.add_archive("other", site.root / "other")
    fill(site.image(), 10 * 65536)
    site.backup()
    fill(site.image(), 10 * 65536, 2)
    return Attacker(site)


def session_of(attacker: Attacker) -> bytes:
    """A session that is pending then, and builds on the one committed."""
    archive_id = attacker.archive_id()
    committed = state(attacker.site).follows[archive_id.hex()].committed
    assert committed is not None
    request = attacker.request(bytes.fromhex(committed.session), committed.sequence)
    offer = Offer.parse(reads(attacker, "Snapshot", request)[1])
    assert not offer.flags & OFFER_FULL
    return offer.session


def state(site: Site) -> State:
    return VolumeState(site.state, "work", "private").load()


def test_a_call_reads_state_and_key_once(attacker: Attacker) -> None:
    session = session_of(attacker)
    once = {"state": 1, "archive": 1, "key": 1, "config": 1}
    for service, wanted in (
        ("Monitor", once | {"key": 0}),
        ("Snapshot", once),
        # Its lock is given up while the chunks go out, so that the state has to be read again.
        ("Extract", once | {"state": 2}),
        ("Commit", once),
    ):
        named = bytes(16) if service == "Monitor" else session
        opened, _ = reads(attacker, service, attacker.request(named))
        assert {kind: opened[kind] for kind in once} == wanted, (service, opened)


def test_an_abort_needs_no_key(attacker: Attacker) -> None:
    opened, _ = reads(attacker, "Abort", attacker.request(session_of(attacker)))
    assert (opened["state"], opened["archive"], opened["key"]) == (1, 1, 0)


def test_what_a_crash_left_is_applied_with_the_key_that_is_read_anyway(
    attacker: Attacker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recovery looks for the archive of the redo, not at all that there are."""
    session = session_of(attacker)
    reads(attacker, "Extract", attacker.request(session))
    with monkeypatch.context() as patch:
        patch.setattr(rotation, "apply", _died)
        with pytest.raises(KeyboardInterrupt):
            attacker.frames("Commit", attacker.request(session))
    (followed,) = [one for one in state(attacker.site).follows.values() if one.redo]
    opened, _ = reads(attacker, "Snapshot", attacker.request(session))
    assert followed.redo and not any(one.redo for one in state(attacker.site).follows.values())
    assert (opened["state"], opened["archive"], opened["key"]) == (1, 1, 1)


def _died(*_: object) -> None:
    raise KeyboardInterrupt
