# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls of this process that fail: the n-th one that concerns files of some folders, or that and
all after it.

For what no FUSE file system can show, clones and holes on Btrfs; else ``faultfs`` has the kernel
between.
"""

import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHANGES = ("pwrite", "fsync", "ftruncate", "replace", "unlink", "mkdir", "open")
CLONING = (*CHANGES, "pread", "preadv", "fstat", "stat", "link", "ioctl")
"""Those, and what reads, compares and clones."""


@dataclass(frozen=True)
class Mode:
    """How calls fail: with an error, from that call on if ``lasting``; with ``short`` the first is
    a write that takes half of what it is given.
    """

    error: int
    lasting: bool = False
    short: bool = False


class Failing:
    """Counts calls that concern what is below ``folders``, and lets some of them fail."""

    def __init__(
        self, folders: Sequence[Path], patch: pytest.MonkeyPatch, names: Sequence[str] = CHANGES
    ) -> None:
        self._folders, self.count, self._hit = tuple(map(str, folders)), 0, False
        self.nth, self.mode = 0, Mode(0)
        self._every_open = "pread" in names
        for name in names:
            module: Any = fcntl if name == "ioctl" else os
            patch.setattr(module, name, self._instead_of(name, getattr(module, name)))

    def arm(self, nth: int, mode: Mode) -> None:
        """Begin to count; the call of that number is to fail, none if it is 0."""
        self.nth, self.mode, self.count, self._hit = nth, mode, 0, False

    def _instead_of(self, name: str, real: Any) -> Any:
        def call(first: Any, *rest: Any, **named: Any) -> Any:
            if not self._counts(name, first, rest, named):
                return real(first, *rest, **named)
            self.count += 1
            mode, hit = self.mode, self._hit
            if self.nth and (self.count == self.nth or (hit and mode.lasting)):
                self._hit = True
                if name == "pwrite" and mode.short and not hit:
                    return real(first, rest[0][: len(rest[0]) // 2 or 1], *rest[1:])
                raise OSError(mode.error, os.strerror(mode.error), str(first))
            return real(first, *rest, **named)

        return call

    def _counts(self, name: str, first: Any, rest: tuple[Any, ...], named: dict[str, Any]) -> bool:
        if name == "open" and not (self._every_open or rest[0] & os.O_CREAT):
            return False
        path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first)
        folder = named.get("dir_fd", named.get("src_dir_fd"))
        if folder is not None and not path.startswith("/"):
            above = os.readlink(f"/proc/self/fd/{folder}")
            path = f"{above}/{path}"
        return path.startswith(self._folders)
