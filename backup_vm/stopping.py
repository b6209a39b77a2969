# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether this run was asked to stop: whatever waits for another machine looks here, in every
thread.

A signal reaches Python's main thread alone, and that one may be waiting for a thread that waits for
a store which never answers. So the handlers of signals ``ask``, and each wait ends by
KeyboardInterrupt once its grace is over.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

GRACE = 0.8
"""Seconds for what is on its way when the signal comes; all of a command has two."""
CLOSING = 0.6
"""Seconds more for what is tidied up at the end."""
STEP = 0.2
"""Seconds after which whatever waits looks again."""
_deadline: float | None = None


def ask() -> None:
    """Note that a signal came; the second one leaves no grace."""
    global _deadline
    now = time.monotonic()
    _deadline = now + GRACE if _deadline is None else now


def forget() -> None:
    """Start again: no signal came."""
    global _deadline
    _deadline = None


def check() -> None:
    """Raise KeyboardInterrupt once the grace after a signal is over."""
    if _deadline is not None and time.monotonic() >= _deadline:
        raise KeyboardInterrupt


@contextmanager
def closing() -> Iterator[None]:
    """A little more time, after a signal, for what must be tidied up in the store (a lock to give
    back).
    """
    global _deadline
    before = _deadline
    if before is not None:
        _deadline = max(before, time.monotonic() + CLOSING)
    try:
        yield
    finally:
        if before is not None:
            _deadline = before


def sleep(seconds: float) -> None:
    """Sleep; raise KeyboardInterrupt as ``check`` does."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        check()
        time.sleep(min(left, STEP))
    check()
