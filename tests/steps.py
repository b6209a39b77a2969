# SPDX-License-Identifier: GPL-2.0-or-later
"""Dying at the n-th durable step: every call that changes a file system is counted, and the n-th is
never made.
"""

import fcntl
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

from backup_vm.archive.storage import libc
from tests.kit import in_child

DIED = 99
CALLS = (
    "fsync",
    "replace",
    "rename",
    "unlink",
    "rmdir",
    "mkdir",
    "ftruncate",
    "truncate",
    "pwrite",
    "copy_file_range",
)
EVERYTHING = (*CALLS, "open", "ioctl", "Popen")
COMMANDS = ("Popen",)
"""Programs started, such as LVM's."""
SQL = "sqlite3"
"""Each statement of a database, and each row of those that are given many."""
SPACE = "fallocate"
"""Room taken in a file, and holes made in it."""
HARMLESS = ("lvs", "losetup")


class Counter:
    """Counts steps of this process and ends it in place of step ``fatal`` (counted from one)."""

    def __init__(self, fatal: int) -> None:
        self.fatal, self.done = fatal, 0

    def step(self) -> None:
        self.done += 1
        if self.done == self.fatal:
            os._exit(DIED)

    def install(self, counted: tuple[str, ...]) -> None:
        for name in counted:
            if name in CALLS:
                setattr(os, name, self._counting(getattr(os, name)))
        if "ioctl" in counted:
            fcntl.ioctl = self._counting(fcntl.ioctl)  # FICLONE
        if "Popen" in counted:
            subprocess.Popen = self._counting(subprocess.Popen)  # type: ignore[assignment,misc]
        if SPACE in counted:
            libc.fallocate = self._counting(libc.fallocate)
        if SQL in counted:
            sqlite3.connect = self._connecting(sqlite3.connect)
        if "open" not in counted:
            return
        original = os.open

        def opening(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if flags & os.O_CREAT and not os.path.exists(path):
                self.step()
            return original(path, flags, *rest, **named)

        os.open = opening

    def _connecting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def connect(*arguments: Any, **named: Any) -> Any:
            connection = original(*arguments, **named)
            connection.set_trace_callback(lambda _: self.step())
            return connection

        return connect

    def _counting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            first = arguments[0] if arguments else None
            if not (
                isinstance(first, list | tuple) and (first[0] in HARMLESS or "status" in first)
            ):
                self.step()
            return original(*arguments, **named)

        return counted


def deaths(
    action: Callable[[], object], counted: tuple[str, ...] = EVERYTHING, every: int = 1
) -> Iterator[int]:
    """Run ``action`` in a child that dies at its first step; yield; again at its second, or so many
    later; until it lives to its end.
    """
    fatal = 1
    while True:

        def attempt(fatal: int = fatal) -> None:
            Counter(fatal).install(counted)
            action()

        code = in_child(attempt)
        assert code in (0, DIED), f"dying at step {fatal} was to exit with {DIED}, not {code}"
        yield fatal
        if code == 0:
            return
        fatal += every
