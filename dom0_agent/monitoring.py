"""Walking snapshots of many volumes in one go, so that volumes of one pool share what LVM's commands cost.

For each batch: all locks; which volumes did not change at all; of the others all snapshots; one metadata snapshot and all
deltas; each volume's state, which is its commit point; the old snapshots, in one command. Dying in between leaves each volume
as it was or walked on.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dom0_agent.archives import Archive
from dom0_agent.config import Volume
from dom0_agent.rotation import Rotation
from dom0_agent.sources import Sources
from dom0_agent.state import State, Store
from wire.status import Code, Refused

BATCH = 32
"""Volumes whose locks are held together."""


@dataclass(frozen=True)
class Outcome:
    """What became of a volume: ``changed`` bytes since the last time; None when there was nothing to do or it failed."""

    name: str
    changed: int | None = None
    error: str | None = None
    busy: bool = False


def monitor(
    state_dir: Path, volumes: Sequence[Volume], archives: dict[str, Archive]
) -> Iterator[Outcome]:
    """Walk the base snapshots on. A volume that another call works on is left for the next time."""
    volumes = [
        volume for volume in volumes if volume.pool.driver != "settings"
    ]  # they are small, and written down when sent
    for start in range(0, len(volumes), BATCH):
        yield from _batch(state_dir, volumes[start : start + BATCH], archives)


def _batch(
    state_dir: Path, volumes: Sequence[Volume], archives: dict[str, Archive]
) -> list[Outcome]:
    sources, outcomes = Sources(state_dir), list[Outcome]()
    with ExitStack() as stack:
        held: list[tuple[Volume, Store, State]] = []
        for volume in volumes:
            store = Store(state_dir, volume.qube, volume.volume)
            if not store.directory.is_dir():  # never backed up
                outcomes.append(Outcome(volume.name))
                continue
            with _noting(volume.name, outcomes):
                held.append((volume, store, stack.enter_context(store.locked(patience=0))))
        stack.enter_context(sources.together([volume for volume, _, _ in held]))
        due: list[Rotation] = []
        for volume, store, state in held:
            with _noting(volume.name, outcomes):
                rotation = Rotation(store, state, sources.open(volume))
                rotation.recover(archives)
                if rotation.followed:
                    rotation.give_way()
                    due.append(rotation)
                else:
                    outcomes.append(Outcome(volume.name))
        changed: list[Rotation] = []
        for rotation in due:
            with _noting(rotation.store.name, outcomes):
                if rotation.unchanged():
                    rotation.finish()
                    outcomes.append(Outcome(rotation.store.name, 0))
                else:
                    changed.append(rotation)
        begun: list[tuple[Rotation, int]] = []
        for rotation in changed:
            with _noting(rotation.store.name, outcomes):
                begun.append((rotation, rotation.begin()))
        for rotation, number in begun:
            with _noting(rotation.store.name, outcomes):
                changed_bytes = rotation.fold(number)
                rotation.finish()
                outcomes.append(Outcome(rotation.store.name, changed_bytes))
    order = {volume.name: at for at, volume in enumerate(volumes)}
    return sorted(outcomes, key=lambda outcome: order[outcome.name])


@contextmanager
def _noting(name: str, outcomes: list[Outcome]) -> Iterator[None]:
    """What fails for one volume is noted, and does not keep the others."""
    try:
        yield
    except (Refused, OSError) as error:
        text, busy = str(error), isinstance(error, Refused) and error.code == Code.BUSY
        outcomes.append(Outcome(name, None, text if name in text else f"{name}: {text}", busy))
