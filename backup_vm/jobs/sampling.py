# SPDX-License-Identifier: GPL-2.0-or-later
"""Which of many things to check in this run, so that a part each night comes to all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from backup_vm.jobs.retention import AHEAD
from backup_vm.quantities import Part

Item = TypeVar("Item")


@dataclass(frozen=True)
class Candidate(Generic[Item]):
    """Something to check: since when nobody has looked at it, whether it was ever found sound, its
    bytes.

    ``since``, in Unix seconds, is the time of the last check, else of when the thing was made.
    """

    item: Item
    since: int
    sound: bool
    size: int


def _since(one: Candidate[Item], now: int) -> int:
    """A time ahead of our clock tells nothing: some clock was wrong, and it would be long before
    its turn came again.
    """
    return one.since if one.since <= now + AHEAD else 0


def due(
    candidates: Sequence[Candidate[Item]], older_than: int | None, part: Part | None, now: int
) -> list[Item]:
    """What to check: of what was not found sound in the last ``older_than`` seconds, up to a
    ``part`` of all candidates' bytes, whatever was not looked at for longest first.

    At least one, if any is due, and the last one may exceed the part.
    """
    # By when it was looked at, not by what was found: what is damaged and stays so must not keep
    # the rest from its turn.
    waiting = sorted(candidates, key=lambda one: _since(one, now))
    if older_than is not None:
        waiting = [one for one in waiting if not one.sound or _since(one, now) <= now - older_than]
    if part is None:
        return [one.item for one in waiting]
    room = part.of(sum(one.size for one in candidates))
    chosen: list[Item] = []
    for one in waiting:
        if room <= 0 and chosen:
            break
        chosen.append(one.item)
        room -= one.size
    return chosen
