# SPDX-License-Identifier: GPL-2.0-or-later
"""The power is cut while what makes room runs on a disk that is full to its last byte: afterwards
it makes room all the same, and a backup before it has not taken what it needs.
"""

import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from backup_vm.archive import reserve
from tests.faults.harness import VOLUMES, Images
from tests.full_disk import empty, fill
from tests.powercut.campaign import Campaign
from tests.powercut.operations import Operation

PRUNE = ("prune", "--keep-last", "1", "--min-age", "0d", "--max-removed", "100%")
BACKUP = ("backup", "--ignore-free-space")
SESSIONS = 6


class FullDisk(Campaign):
    """A campaign whose archive's disk is full when each operation begins."""

    @property
    def reserve(self) -> Path:
        return Path(self.archive) / reserve.NAME

    def _build(self) -> None:
        super()._build()
        rng = random.Random(self.seed + 4)
        for _ in range(SESSIONS - 3):
            self.scribble(rng)
            self.expect(0, "backup")
        assert self.reserve.stat().st_blocks, "there was room for it"
        fill(self.mounts[0])

    def fill(self) -> None:
        """Fill what was given back."""
        fill(self.mounts[0])
        subprocess.run(["sync", "-f", self.mounts[0]], check=True)

    def _check(self, must: Images, may: Images, rng: random.Random) -> Iterator[str]:
        """What is wrong on the disks that are mounted; nobody has made room."""
        first = rng.choice((("list",), BACKUP, BACKUP, ("scrub",), PRUNE))
        if rng.random() < 0.5:
            self.scribble(rng)
        done = self.place.command(*first, archive=self.archive)
        yield from done.problems()
        if done.code and not (first == BACKUP and "full" in done.text):
            yield f"{first[0]} at first: exit {done.code}: {done.text[-500:]}"
        if first != PRUNE:
            yield from self._compare(must, may, f"after {first[0]}")
        newest = {name: dict([*found.items()][-1:]) for name, found in self.found().items()}
        fill(self.mounts[0])
        done = self.place.command(*PRUNE, archive=self.archive)
        yield from done.problems()
        if done.code:
            yield f"no room can be made after {first[0]}: exit {done.code}: {done.text[-500:]}"
        yield from self._compare(newest, may, "after the prune")
        if not self.reserve.exists() or not self.reserve.stat().st_blocks:
            yield "no room is kept for the next prune"
        empty(self.mounts[0])
        yield from super()._check(newest, may, rng)


def full_operations(campaign: Campaign) -> Iterator[Operation]:
    """What makes room, or looks whether all is well, one after another."""
    assert isinstance(campaign, FullDisk)

    def command(*words: str) -> Callable[[], None]:
        return lambda: campaign.expect(0, *words)

    yield Operation("scrub", command("scrub"))
    middle = list(campaign.found()["work/private"])[2]
    yield Operation(
        "prune one", command("prune", "work/private", "--session", middle), frozenset({middle})
    )
    campaign.fill()
    first = list(campaign.found()["other/private"])[0]
    yield Operation(
        "prune the first", command("prune", "other/private", "--session", first), frozenset({first})
    )
    campaign.fill()
    doomed = frozenset(s for name in VOLUMES for s in list(campaign.found()[name])[:-2])
    two = ("prune", "--keep-last", "2", "--min-age", "0d", "--max-removed", "100%")
    yield Operation("prune all but two", command(*two), doomed)
    campaign.fill()
    yield Operation("scrub again", command("scrub"))
    gone = frozenset(campaign.found()["other/private"])
    passphrase = str(campaign.place.root / "passphrase")
    delete = ("delete", "other/private", "--yes", "--passphrase-file", passphrase)
    yield Operation("delete", command(*delete), gone)
