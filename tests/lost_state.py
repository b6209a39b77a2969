# SPDX-License-Identifier: GPL-2.0-or-later
"""What may happen to dom0's state and to the archive behind each other's back, for a site on any
kind of storage.
"""

import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.kit import Site
from wire.messages import Offer


def volumes(site: Site) -> Path:
    return site.state / "volumes"


def sent(site: Site) -> int:
    """Bytes that a backup stores again; the newest session is then what the volume holds."""
    (done,) = site.backup().done
    assert list(site.images().values())[-1] == site.contents()
    assert len(site.snapshots()) == 1
    return done.stored


def two_sessions(site: Site, rng: random.Random) -> None:
    for _ in range(2):
        site.backup()
        site.disturb(rng)


def state_is_lost(site: Site) -> None:
    rng = random.Random(1)
    two_sessions(site, rng)
    site.backup()
    shutil.rmtree(volumes(site))
    assert sent(site) == 0  # everything is looked at, nothing sent
    site.disturb(rng)
    assert sent(site) > 0


def state_is_an_old_copy(site: Site) -> None:
    rng = random.Random(2)
    two_sessions(site, rng)
    copy = site.root / "copy"
    shutil.copytree(volumes(site), copy)
    two_sessions(site, rng)
    site.backup()
    shutil.rmtree(volumes(site))
    shutil.copytree(copy, volumes(site))
    assert sent(site) == 0
    site.disturb(rng)
    assert sent(site) > 0


def state_of_another_life(site: Site) -> None:
    """An old copy whose base snapshot counts the same as one taken since, for another archive that
    waited all the time.
    """
    rng, other = random.Random(3), site.root / "other"
    site.add_archive("other", other)
    site.backup()
    site.backup(folder=other)
    copy = site.root / "copy"
    shutil.copytree(volumes(site), copy)
    shutil.rmtree(volumes(site))
    for _ in range(2):  # a new life, in which the numbers begin again
        site.disturb(rng)
        site.backup()
    shutil.rmtree(volumes(site))
    shutil.copytree(copy, volumes(site))
    site.disturb(rng)
    site.backup(folder=other)
    assert list(site.images(folder=other).values())[-1] == site.contents()


def bitmap_is_lost(site: Site) -> None:
    rng = random.Random(4)
    two_sessions(site, rng)
    site.monitor()
    for path in volumes(site).rglob("*.map"):
        path.unlink()
    assert sent(site) > 0


def ids_are_lost(site: Site) -> None:
    rng = random.Random(5)
    two_sessions(site, rng)
    site.backup()
    for path in volumes(site).rglob("*.ids"):
        path.write_bytes(b"")
    assert sent(site) == 0


def ids_are_damaged(site: Site) -> None:
    """A page of the ids is other than what was committed: found when it is read, and the next
    backup compares all.
    """
    rng = random.Random(9)
    two_sessions(site, rng)
    site.backup()
    (ids,) = volumes(site).rglob("*.ids")
    raw = bytearray(ids.read_bytes())
    raw[5] ^= 1
    ids.write_bytes(raw)
    site.disturb(rng)
    with suppress(AssertionError):  # refused: its root could not be right
        site.backup()
    site.backup()
    assert list(site.images().values())[-1] == site.contents()
    site.disturb(rng)
    assert not site.backup().done[0].full
    assert list(site.images().values())[-1] == site.contents()


def log_is_damaged_before_commit(site: Site) -> None:
    """Between Extract and Commit: the session is good, the ids of it are not known."""
    rng = random.Random(10)
    two_sessions(site, rng)
    agent = site.agent()
    ask = agent.ask_commit

    def damage(qube: str, volume: str, session: bytes) -> Callable[[], None]:
        for log in volumes(site).rglob("*.log"):
            log.write_bytes(log.read_bytes()[:-1])
        return ask(qube, volume, session)

    agent.ask_commit = damage  # type: ignore[method-assign]
    site.backup(agent=agent)
    assert list(site.images().values())[-1] == site.contents()
    site.disturb(rng)
    (done,) = site.backup().done
    assert done.full and list(site.images().values())[-1] == site.contents()


def state_is_damaged(site: Site) -> None:
    rng = random.Random(11)
    two_sessions(site, rng)
    site.backup()
    (state,) = volumes(site).rglob("state.json")
    state.write_bytes(state.read_bytes()[:-9])
    assert sent(site) == 0
    site.disturb(rng)
    assert sent(site) > 0


def archive_is_an_old_copy(site: Site) -> None:
    rng, copy = random.Random(6), site.root / "copy"
    two_sessions(site, rng)
    shutil.copytree(site.archive, copy)
    two_sessions(site, rng)
    shutil.rmtree(site.archive)
    copy.rename(site.archive)
    site.backup()
    assert list(site.images().values())[-1] == site.contents()
    assert len(site.images()) == 3
    site.verify_all()
    assert site.scrubbed() == []


def archive_is_newer_than_dom0_thinks(site: Site) -> None:
    """dom0 goes back to before a session was begun, the archive has it."""
    rng = random.Random(7)
    two_sessions(site, rng)
    copy = site.root / "copy"
    shutil.copytree(volumes(site), copy)
    site.backup()
    shutil.rmtree(volumes(site))
    shutil.copytree(copy, volumes(site))
    assert sent(site) == 0
    assert len(site.images()) == 4


def state_is_from_before_extract(site: Site) -> None:
    """dom0 goes back to where a session was begun and nothing of it sent; the archive has it."""
    rng, copy = random.Random(12), site.root / "copy"
    two_sessions(site, rng)
    agent = site.agent()
    ask = agent.ask_snapshot

    def remember(*words: Any) -> Callable[[], Offer]:
        wait = ask(*words)

        def offer() -> Offer:
            found = wait()
            shutil.copytree(volumes(site), copy)
            return found

        return offer

    agent.ask_snapshot = remember  # type: ignore[method-assign]
    agent.ask_commit = lambda *_: lambda: None  # type: ignore[method-assign]
    site.backup(agent=agent)
    shutil.rmtree(volumes(site))
    copy.rename(volumes(site))
    assert sent(site) == 0
    site.disturb(rng)
    assert sent(site) > 0


SCENARIOS: list[Callable[[Site], None]] = [
    state_is_lost,
    state_is_an_old_copy,
    state_of_another_life,
    bitmap_is_lost,
    ids_are_lost,
    ids_are_damaged,
    log_is_damaged_before_commit,
    state_is_damaged,
    state_is_from_before_extract,
    archive_is_an_old_copy,
    archive_is_newer_than_dom0_thinks,
]
