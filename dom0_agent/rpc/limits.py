# SPDX-License-Identifier: GPL-2.0-or-later
"""How many calls there may be at once: of one caller, so that none can keep the others out, and of
all, so that dom0 bears it.

The resident agent counts; where each call is a process of its own, locked files do.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from common.durable import Busy, closing_fd, lock, make_directory
from wire.status import Code, Refused


class Limit(NamedTuple):
    """Calls of one caller, and calls in all."""

    caller: int
    total: int


EVERY = Limit(16, 64)
"""Any call. A backup VM makes four at a time, and begins one or two more ahead."""
HEAVY = Limit(4, 12)
"""Calls that hold chunks: 20 to 55 MiB each were measured."""
HEAVY_SERVICES = frozenset({"Extract", "Verify", "Restore"})
FIRST_BYTE = 300.0
"""Seconds that a caller may take before the first byte of its request: calls are begun a little
ahead.
"""
PATIENCE = 20.0
"""Seconds that a call waits for others to end before it is answered "busy"."""


@contextmanager
def slot(
    folder: Path, caller: str, kind: str, limit: Limit, patience: float = PATIENCE
) -> Iterator[None]:
    """Hold one of the caller's places and one of all, which go with the process; Refused when there
    is none.

    ``caller`` and ``kind`` are checked names. Nothing waits for a lock while it holds another: both
    are had, or neither.
    """
    make_directory(folder)
    deadline = time.monotonic() + patience
    with ExitStack() as stack:
        while not _both(stack, folder, caller, kind, limit):
            if time.monotonic() >= deadline:
                raise Refused(
                    Code.BUSY, f"{caller} has too many calls at once, or all callers have"
                )
            time.sleep(0.05)
        yield


def _both(stack: ExitStack, folder: Path, caller: str, kind: str, limit: Limit) -> bool:
    for name, count in ((f"{caller}+{kind}", limit.caller), (f"+{kind}", limit.total)):
        if not _one(stack, folder, name, count):
            stack.close()
            return False
    return True


def _one(stack: ExitStack, folder: Path, name: str, count: int) -> bool:
    """One of ``count`` files that nobody has locked. No name of a qube has a plus in it."""
    # Locks, not a counter in a file: the kernel takes them back from a process that is killed.
    for number in range(count):
        try:
            stack.enter_context(closing_fd(lock(folder / f"{name}+{number}")))
        except Busy:
            continue
        return True
    return False
