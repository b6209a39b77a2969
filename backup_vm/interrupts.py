"""Ctrl-C and SIGTERM at points where nothing is half done."""

import signal
from types import FrameType, TracebackType
from typing import Any

from backup_vm import stopping


class Interrupted(Exception):
    """The run was asked to stop, and this is a point at which it can."""


class Interrupts:
    """While entered, the first signal is only noted, for ``check`` to raise; a second one interrupts at once."""

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        stopping.ask()
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self._asked:
            raise Interrupted
