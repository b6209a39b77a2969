# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls of one run that overlap: those of the next volumes are asked while one is waited for.

Of a short call most is the way to dom0 and back, the start of its process, and waiting for a disk.
With one after another 60 volumes in which little changed cost all of that 180 times.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import ParamSpec, TypeVar

from backup_vm.errors import AgentError, DamagedError
from wire.messages import OFFER_FULL, Offer

AHEAD = 3
"""Calls asked beside the one that is waited for. dom0 lets a caller have four at once that hold
chunks, and begins no more than three whose request has not come."""
LITTLE = 4 << 20
"""Bytes of changes up to which a volume is extracted while others are: what is more keeps dom0's
processors busy by itself."""
Thing = TypeVar("Thing")
Result = TypeVar("Result")
Given = ParamSpec("Given")
Answer = Callable[[], Result]
"""Waits for the end of what was asked; raises AgentError, DamagedError."""


def ask(
    action: Callable[Given, Answer[Result]], *given: Given.args, **named: Given.kwargs
) -> Answer[Result]:
    """What ``action`` asks for; what goes wrong with the asking is raised where the answer is
    waited for.
    """
    try:
        return action(*given, **named)
    except (AgentError, DamagedError) as error:
        failure = error

    def fail() -> Result:
        raise failure

    return fail


def in_turn(
    things: Iterable[Thing], action: Callable[[Thing], Answer[Result]]
) -> Iterator[tuple[Thing, Answer[Result]]]:
    """Each thing with its answer, in order, AHEAD more having been asked by then."""
    asked: deque[tuple[Thing, Answer[Result]]] = deque()
    for thing in things:
        asked.append((thing, ask(action, thing)))
        if len(asked) > AHEAD:
            yield asked.popleft()
    while asked:
        yield asked.popleft()


def is_little(offer: Offer) -> bool:
    """Whether a session is one to be extracted beside others: with nothing to be compared."""
    return offer.changed <= LITTLE and not offer.flags & OFFER_FULL
