"""Dying at the n-th durable step: every call that changes a file system is counted, and the n-th is never made."""

import fcntl
import os
from collections.abc import Callable, Iterator
from typing import Any

from tests.kit import in_child

DIED = 99
_CALLS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "ftruncate", "truncate", "pwrite", "copy_file_range")


class Counter:
    """Counts steps of this process and ends it in place of step ``fatal`` (counted from one)."""

    def __init__(self, fatal: int) -> None:
        self.fatal, self.done = fatal, 0

    def step(self) -> None:
        self.done += 1
        if self.done == self.fatal:
            os._exit(DIED)

    def install(self) -> None:
        for name in _CALLS:
            setattr(os, name, self._counting(getattr(os, name)))
        fcntl.ioctl = self._counting(fcntl.ioctl)  # FICLONE
        original = os.open

        def opening(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if flags & os.O_CREAT and not os.path.exists(path):
                self.step()
            return original(path, flags, *rest, **named)

        os.open = opening

    def _counting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.step()
            return original(*arguments, **named)

        return counted


def deaths(action: Callable[[], object], stride: int = 1) -> Iterator[int]:
    """Run ``action`` in a child that dies at its first step; yield; again at its second; until it lives to its end.

    With a stride only every so many steps, beginning with the first.
    """
    fatal = 1
    while True:

        def attempt(fatal: int = fatal) -> None:
            Counter(fatal).install()
            action()

        code = in_child(attempt)
        assert code in (0, DIED), f"dying at step {fatal} was to exit with {DIED}, not {code}"
        yield fatal
        if code == 0:
            return
        fatal += stride
