# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals: how every command ends when it is asked to, and points where nothing is half done."""

import os
import signal
import threading  # here, not in a handler: a signal may come in the middle of its import
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

from backup_vm import stopping

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a command to end: Ctrl-C, a stop by systemd or kill, a terminal that was closed."""

PATIENCE = 0.8
"""Seconds that a run has to come to a point where nothing is half done."""

LIMIT = 1.8
"""Seconds from a signal to the process's end, whatever it waits for: a disk or a service that is
stuck.
"""

_NUDGE = signal.SIGURG
"""Ends a system call, and means nothing by itself; ignored where nobody handles it."""

_SOON = 0.05
"""Seconds for a handler to run by itself."""

MESSAGE = "sparsebak: interrupted; what was stored is kept"


class Stop(KeyboardInterrupt):
    """A signal came. Not an Exception, so that no handler of errors takes it for one."""


class Interrupted(Exception):
    """The run was asked to stop, and this is a point at which it can."""


_came: int | None = None
"""The first signal."""

_over = False
"""Whether the command is done: its exit code stands, and a signal interrupts nothing."""

_limit: threading.Timer | None = None

_untold = threading.Lock()
"""Free until somebody says that the command was interrupted."""


def first_to_tell() -> bool:
    """Whether the caller is the one to print MESSAGE: the command at its end, or whoever ends it
    when that takes too long, which may be just after.
    """
    return _untold.acquire(blocking=False)


def came() -> bool:
    """Whether a signal came. Then whatever ends the command is its doing: Python 3.11 makes a
    RuntimeError of a Stop in a __set_name__, and each enumeration of a module that is being
    imported has some.
    """
    return _came is not None


def exit_code() -> int:
    """128 and the number of the signal that came; as after Ctrl-C where none is known."""
    return 128 + (_came or signal.SIGINT)


def over() -> None:
    """Say that the command is done. Called where a Stop is still caught; from then on none comes,
    also while what ``handled`` set up is taken down.
    """
    global _over
    _over = True


@contextmanager
def handled(process: bool = True) -> Iterator[None]:
    """Have each of SIGNALS raise Stop, once, also while this begins. One that was ignored at the
    start (nohup) stays so.

    ``process``: whether the process ends with the command, so that LIMIT holds for its end as well.
    """
    global _came, _over, _untold
    _came, _over, _untold = None, False, threading.Lock()
    stopping.forget()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with _seen_to():
            try:
                for number, handler in before.items():
                    if handler is not signal.SIG_IGN:
                        signal.signal(number, _stop)
                yield
            finally:
                over()
    finally:
        if not process:  # whatever comes next in it was not asked to stop
            stopping.forget()
            if _limit is not None:
                _limit.cancel()
        for number, handler in before.items():
            # The exit code stands when the command is done: nothing may change it while Python
            # shuts down.
            signal.signal(number, signal.SIG_IGN if process else handler)


@contextmanager
def _seen_to() -> Iterator[None]:
    """Have a handler run soon, whatever its thread waits in.

    Python only notes a signal, and runs its handler when the main thread is next in Python code.
    One that comes just before a read(2) begins does not end that read, which may wait for ever. So
    another thread is woken by each signal (a byte in a pipe), and nudges the main one.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(writing, False)
    over = threading.Event()
    handler = signal.signal(_NUDGE, lambda number, frame: None)
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    main = threading.get_ident()
    watcher = threading.Thread(target=_watch, args=(reading, main, over), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(woken)
        os.close(writing)
        watcher.join()
        os.close(reading)
        signal.signal(_NUDGE, handler)


def _watch(reading: int, main: int, over: threading.Event) -> None:
    while numbers := os.read(reading, 64):
        deadline = time.monotonic() + LIMIT
        while any(one in numbers for one in SIGNALS) and _came is None and not over.wait(_SOON):
            if time.monotonic() > deadline:
                _end()  # not even a nudge is noticed: a disk that is stuck
            signal.pthread_kill(main, _NUDGE)


def _stop(number: int, frame: FrameType | None) -> None:
    """The first signal unwinds the command. Those that follow must not break off its cleaning up:
    a closed terminal and an impatient Ctrl-C send several."""
    if _note(number) and not _over:
        raise Stop


def _note(number: int) -> bool:
    """Whether this signal is the first. From then on LIMIT holds."""
    global _came, _limit
    stopping.ask()
    if _came is not None:
        return False
    _came, _limit = number, threading.Timer(LIMIT, _end)
    _limit.daemon = True
    _limit.start()
    return True


def _end() -> None:
    """End the process as it is. That is as safe as a power cut: what counts has one commit point
    each.
    """
    with suppress(OSError):
        if first_to_tell():
            os.write(2, f"{MESSAGE}\n".encode())
    os._exit(exit_code())


class Interrupts:
    """While entered, a signal is only noted, for ``check`` to raise.

    A run that waits for somebody may not come to a check: after PATIENCE, or at a second signal,
    Stop is raised wherever it is. What came since the last pack is sent again then.
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
