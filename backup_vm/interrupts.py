"""Signals: how every command ends when it is asked to, and points where nothing is half done."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a command to end: Ctrl-C, a stop by systemd or kill, a terminal that was closed."""

PATIENCE = 1.0
"""Seconds that a run has to come to a point where nothing is half done, and that cleaning up may take
before another signal ends the process as it is."""


class Stop(KeyboardInterrupt):
    """A signal came. Not an Exception, so that no handler of errors takes it for one."""


class Interrupted(Exception):
    """The run was asked to stop, and this is a point at which it can."""


_came: tuple[int, float] | None = None
"""The first signal, and when it came."""


def exit_code() -> int:
    """128 and the number of the signal that came; as after Ctrl-C where none is known."""
    return 128 + (_came[0] if _came else signal.SIGINT)


@contextmanager
def handled() -> Iterator[None]:
    """Have each of SIGNALS raise Stop, once. One that was ignored at the start (nohup) stays so."""
    global _came
    _came = None
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore() -> None:
    """The command is done and its exit code stands: nothing may change that while Python shuts down."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _stop(number: int, frame: FrameType | None) -> None:
    """The first signal unwinds the command. Those that follow must not break off its cleaning up:
    a closed terminal and an impatient Ctrl-C send several. Only if it takes too long does one end it."""
    if not _note(number):
        return
    raise Stop


def _note(number: int) -> bool:
    """Whether this signal is the first. One that comes long after the first ends the process."""
    global _came
    if _came is None:
        _came = number, time.monotonic()
        return True
    if time.monotonic() - _came[1] > PATIENCE:
        os._exit(128 + _came[0])
    return False


class Interrupts:
    """While entered, a signal is only noted, for ``check`` to raise.

    A run that waits for somebody may not come to a check: after PATIENCE, or at a second signal, Stop is
    raised wherever it is. That is as safe as a power cut, but what came since the last pack is sent again.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        for number in SIGNALS:
            self._before[number] = signal.getsignal(number)
            if self._before[number] is not signal.SIG_IGN:
                signal.signal(number, self._note)
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._overdue)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not _note(number):
            raise Stop
        self._asked = True
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)

    def _overdue(self, number: int, frame: FrameType | None) -> None:
        raise Stop

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self._asked:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise Interrupted
