# SPDX-License-Identifier: GPL-2.0-or-later
"""Which of many things to check in this run, so that a part each night comes to all of them."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from backup_vm.archive.notes import Notes, short
from backup_vm.jobs.keep_rules import AHEAD
from backup_vm.quantities import Part

Item = TypeVar("Item")


@dataclass(frozen=True)
class Candidate(Generic[Item]):
    """Something to check: since when nobody has looked at it, what was found then, its bytes.

    ``since``, in Unix seconds, is the time of the last check, else of when the thing was stored.
    ``sound`` is None if there was no check yet.
    """

    item: Item
    since: int
    sound: bool | None
    size: int


def _since(one: Candidate[Item], now: int) -> int:
    """A time ahead of our clock tells nothing: some clock was wrong, and it would be long before
    its turn came again.
    """
    return one.since if one.since <= now + AHEAD else 0


def packs_to_check(
    names: Sequence[str], sizes: Mapping[str, int], notes: Notes, now: int
) -> list[Candidate[str]]:
    """Packs, each as something to be checked in its turn; one that never was counts from when a
    scrub first saw it.
    """
    # In no order, so that equals have an equal chance where nothing can be noted (a disk that is
    # read-only): in order, each run would take the same.
    return [
        Candidate(
            name,
            notes.packs.get(pack := short(name), notes.seen.get(pack, now)),
            False if pack in notes.unsound else True if pack in notes.packs else None,
            max(sizes.get(name, 0), 0),
        )
        for name in random.sample(names, len(names))
    ]


def due(
    candidates: Sequence[Candidate[Item]], older_than: int | None, part: Part | None, now: int
) -> list[Item]:
    """What to check: of what was not found sound in the last ``older_than`` seconds, up to a
    ``part`` of all candidates' bytes.

    What was found damaged takes up to half of the part, so that it is known soon when it was
    mended; the rest goes to whatever was not looked at for longest. Each takes at least one, if any
    is due, and the last one of each may exceed its share.
    """
    # By when it was looked at, not by what was found, and not first what is new: neither what is
    # damaged and stays so nor what comes each day may keep the rest from its turn.
    # Of equals what never had a turn comes first.
    waiting = sorted(candidates, key=lambda one: (_since(one, now), one.sound is not None))
    if older_than is not None:
        waiting = [one for one in waiting if not one.sound or _since(one, now) <= now - older_than]
    if part is None:
        return [one.item for one in waiting]
    room = part.of(sum(one.size for one in candidates))
    again = _first([one for one in waiting if one.sound is False], room / 2)
    taken = set(map(id, again))
    left = [one for one in waiting if id(one) not in taken]
    chosen = again + _first(left, room - sum(one.size for one in again))
    return [one.item for one in chosen]


def _first(waiting: Sequence[Candidate[Item]], room: float) -> list[Candidate[Item]]:
    """The first ones, until there is no ``room`` (bytes) left; at least one, if there is any."""
    chosen: list[Candidate[Item]] = []
    for one in waiting:
        if room <= 0 and chosen:
            break
        chosen.append(one)
        room -= one.size
    return chosen
