# SPDX-License-Identifier: GPL-2.0-or-later
"""Replacing the base snapshots of many volumes in one go: each under its own lock, held no longer
than for its own work.

Images in folders go one by one. Volumes of thin pools share what LVM's commands cost, a batch at a
time: which did not change at all; of the others all snapshots; one metadata snapshot and all
deltas, each volume's state, which is its commit point, with its own; the old snapshots, in one
command. Between these steps no lock is held; a volume that somebody else worked on meanwhile is
left for the next time. Dying in between leaves each volume with the old base or with the new one.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from common.existing import is_dir
from common.text import reason
from dom0_agent.config import Volume
from dom0_agent.keyring import Keyring
from dom0_agent.sources import Sources
from dom0_agent.tracking.rotation import Rotation
from dom0_agent.tracking.state import VolumeState
from wire.status import Code, Refused

BATCH = 32
"""Volumes of thin pools that go together."""
SHARE = 5.0
"""Seconds after which a pool's metadata snapshot is given back between two volumes: other calls
wait for it, too.
"""


class Outcome(NamedTuple):
    """What became of a volume: ``changed`` bytes since the last time; None when there was nothing
    to do or it failed.
    """

    name: str
    changed: int | None = None
    error: str | None = None
    busy: bool = False


def monitor(state_dir: Path, volumes: Sequence[Volume], keyring: Keyring) -> Iterator[Outcome]:
    """Replace the base snapshots. A volume that another call works on is left for the next time."""
    # Documents are small, and written down when sent.
    volumes = [volume for volume in volumes if volume.pool.driver != "settings"]
    for thin, alike in groupby(volumes, lambda volume: volume.pool.driver == "lvm_thin"):
        members = list(alike)
        size = BATCH if thin else 1
        for start in range(0, len(members), size):
            yield from _Batch(state_dir, members[start : start + size], keyring).run()


class _Turn:
    """One volume's turn. ``uses``: what VolumeState.uses will be if nobody but this batch takes the
    lock.
    """

    def __init__(self, state_dir: Path, volume: Volume) -> None:
        self.volume = volume
        self.store = VolumeState.of(state_dir, volume)
        self.uses = self.store.uses()
        self.number = 0

    @contextmanager
    def held(self, sources: Sources) -> Iterator[Rotation]:
        """The volume under its lock, as this batch left it; Refused as busy when others work on it,
        or did.
        """
        with self.store.locked(patience=0) as state:
            # Whoever had the lock in between may have taken a snapshot, committed, or dropped ours:
            # what this batch found out in its last round is of the past then.
            if self.store.uses() != self.uses + 1:
                raise Refused(Code.BUSY, f"{self.volume.name} was just worked on")
            self.uses += 2
            yield Rotation(self.store, state, sources.open(self.volume))


class _Batch:
    def __init__(self, state_dir: Path, volumes: Sequence[Volume], keyring: Keyring) -> None:
        self._volumes, self._keyring = volumes, keyring
        self._sources, self._outcomes = Sources(state_dir), dict[str, Outcome]()
        # Before storage is asked about anything: what it says is then no older than what the locks
        # protect.
        self._turns = [
            _Turn(state_dir, volume)
            for volume in volumes
            if is_dir(VolumeState.of(state_dir, volume).directory)
        ]

    def run(self) -> list[Outcome]:
        """Outcomes in the volumes' order."""
        # LVM's commands are 97 % of the time (measured: 20 volumes in which nothing changed). So
        # what one of them can do for many is done together: a report, a reserved metadata
        # snapshot, an lvremove; only lvcreate makes one snapshot at a time.
        with self._sources.together(self._volumes_of(self._turns)):
            changed = [turn for turn in self._turns if self._has_changed(turn)]
        begun = deque(turn for turn in changed if self._begin(turn))
        while begun:
            with self._sources.together(self._volumes_of(begun)):
                until = time.monotonic() + SHARE
                self._replace_base(begun.popleft())
                while begun and time.monotonic() < until:
                    self._replace_base(begun.popleft())
        # Without an outcome: never backed up, or by no archive that is left.
        return [self._outcomes.get(volume.name, Outcome(volume.name)) for volume in self._volumes]

    @staticmethod
    def _volumes_of(turns: Sequence[_Turn]) -> list[Volume]:
        return [turn.volume for turn in turns]

    def _has_changed(self, turn: _Turn) -> bool:
        with self._noting(turn), turn.held(self._sources) as rotation:
            rotation.recover(self._keyring)
            if not rotation.followed:
                return False
            if rotation.yield_space():
                rotation.finish()
                if not rotation.followed:
                    return False
            unchanged = rotation.unchanged()
            if unchanged:
                rotation.finish()
                self._outcomes[turn.volume.name] = Outcome(turn.volume.name, 0)
            return not unchanged
        return False

    def _begin(self, turn: _Turn) -> bool:
        """Take the snapshot. No state mentions it yet: whoever works on the volume before
        ``_replace_base`` does removes it.
        """
        with self._noting(turn), turn.held(self._sources) as rotation:
            turn.number = rotation.begin()
            return True
        return False

    def _replace_base(self, turn: _Turn) -> None:
        with self._noting(turn), turn.held(self._sources) as rotation:
            changed = rotation.replace_base(turn.number)
            rotation.finish()
            self._outcomes[turn.volume.name] = Outcome(turn.volume.name, changed)

    @contextmanager
    def _noting(self, turn: _Turn) -> Iterator[None]:
        """What fails for one volume is noted, and does not keep the others."""
        name = turn.volume.name
        try:
            yield
        except (Refused, OSError) as error:
            text, busy = reason(error), isinstance(error, Refused) and error.code == Code.BUSY
            text = text if name in text else f"{name}: {text}"
            self._outcomes[name] = Outcome(name, None, text, busy)
