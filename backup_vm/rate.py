# SPDX-License-Identifier: GPL-2.0-or-later
"""A limit to the bytes that a run reads from an archive or writes to it in a second, so that other
programs still have a disk and a network.
"""

import threading
import time

from backup_vm import stopping
from backup_vm.quantities import parse_size

LEAST = 64 << 10
"""Bytes a second: with less, dom0 takes the backup VM for one that has stopped reading (1 MiB in
300 seconds), and an object store for one that has stopped sending.
"""
_SAVED = 1.0
"""Seconds for which what was not used is saved up."""


def parse_rate(text: str) -> int:
    """Bytes a second that ``20M`` stands for; raise ValueError."""
    rate = parse_size(text.removesuffix("/s"))
    if rate < LEAST:
        raise ValueError(f"{text!r} is too slow: dom0 and servers give up below 64K a second")
    return rate


class Rate:
    """So many bytes a second, on average; as many as come where ``limit`` is 0. Safe to share
    between threads.
    """

    def __init__(self, limit: int = 0) -> None:
        self._limit, self._lock = limit, threading.Lock()
        self._free = time.monotonic()
        """When all that was spent is paid for."""

    def spend(self, size: int) -> None:
        """Wait until so many bytes may have been moved. KeyboardInterrupt as ``stopping``."""
        if not self._limit:
            return
        with self._lock:
            now = time.monotonic()
            self._free = max(self._free, now - _SAVED) + size / self._limit
            wait = self._free - now
        if wait > 0:
            stopping.sleep(wait)
