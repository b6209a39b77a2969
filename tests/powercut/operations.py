# SPDX-License-Identifier: GPL-2.0-or-later
"""What a campaign does to an archive, one step after the other."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.harness import VOLUMES, run
from tests.faults.scenarios import cut_off
from tests.powercut.campaign import Campaign


@dataclass(frozen=True)
class Operation:
    """One command. ``doomed``: names of the sessions that it removes."""

    name: str
    action: Callable[[], object]
    doomed: frozenset[str] = frozenset()


def _sessions(campaign: Campaign, name: str = "work/private") -> list[str]:
    return list(campaign.found()[name])


def operations(campaign: Campaign) -> Iterator[Operation]:
    """What writes, one after another."""
    rng, expect = random.Random(campaign.seed + 2), campaign.expect

    def command(*words: str) -> Callable[[], None]:
        return lambda: expect(0, *words)

    campaign.scribble(rng)
    yield Operation("backup", command("backup"))
    campaign.scribble(rng)
    yield Operation("monitor", lambda: run(lambda: campaign.place.agent_called("monitor")))
    middle = _sessions(campaign)[1]
    yield Operation(
        "prune", command("prune", "work/private", "--session", middle), frozenset({middle})
    )
    campaign.scribble(rng)
    campaign.place.site.archive = Path(campaign.archive)
    yield Operation("backup that is cut off", lambda: cut_off(campaign.place))
    yield Operation("backup that resumes", command("backup", "--tag", "resumed"))
    first = _sessions(campaign)[0]
    yield Operation("restore", command("restore", "work/private", "--session", first, "--yes"))
    yield Operation("backup after it", command("backup"))


def more_operations(campaign: Campaign) -> Iterator[Operation]:
    """The same and others."""
    rng = random.Random(campaign.seed + 3)
    yield from operations(campaign)
    for number in range(3):
        campaign.scribble(rng)
        yield Operation(f"backup {number}", lambda: campaign.expect(0, "backup"))
        yield Operation("scrub", lambda: campaign.expect(0, "scrub"))
    (Path(campaign.archive) / "catalog.sqlite").unlink()
    campaign.scribble(rng)
    yield Operation("backup without a catalog", lambda: campaign.expect(0, "backup"))
    doomed = frozenset(session for name in VOLUMES for session in _sessions(campaign, name)[:-2])
    yield Operation(
        "prune all but two",
        lambda: campaign.expect(0, "prune", "--keep-last", "2", "--min-age", "0d"),
        doomed,
    )
    newest = _sessions(campaign)[-1]
    yield Operation(
        "prune the newest",
        lambda: campaign.expect(0, "prune", "work/private", "--session", newest),
        frozenset({newest}),
    )
    yield Operation(
        "tag",
        lambda: campaign.expect(0, "tag", "work/private", "--session", "latest", "--add", "a"),
    )
    campaign.scribble(rng)
    yield Operation("the last backup", lambda: campaign.expect(0, "backup"))
