# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for requests that run outside Python (``obstore``), so that a signal or a silent store
ends the wait.

Requests run in one asyncio loop in a thread of its own, which nothing joins: whoever asked waits in
steps, and leaves what it does not wait for any more. What is slow differs from what is silent in
the kernel's own count of bytes.
"""

import asyncio
import atexit
import concurrent.futures
import math
import os
import socket
import struct
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from backup_vm import stopping
from backup_vm.archive.storage import objects
from backup_vm.archive.storage.objects import Silent

Result = TypeVar("Result")
_LOOK = 1.0
"""Seconds between two looks at the counters."""
_SETTLED = 0.2
"""Seconds after which the library has done with what was cancelled."""
_ACKED_AND_RECEIVED = struct.Struct("=QQ")
_AT = 120
"""Where ``tcpi_bytes_acked`` and ``tcpi_bytes_received`` are in struct tcp_info (Linux 4.1)."""


def traffic() -> int:
    """Bytes that went out (acknowledged) and came in by the TCP connections of this process that
    are open now.

    A number that stands still means silence. The library tells nothing of an upload on its way, and
    a limit of time for it would give up whoever has a slow line.
    """
    total, names = 0, list[str]()
    with suppress(OSError):  # without /proc, whatever takes longer than a silence may is given up
        names = os.listdir("/proc/self/fd")
    for name in names:
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as one:
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
        except OSError:  # closed meanwhile, or not TCP
            continue
        if len(info) >= _AT + _ACKED_AND_RECEIVED.size:
            total += sum(_ACKED_AND_RECEIVED.unpack_from(info, _AT))
    return total


class Requests:
    """Runs coroutines in a loop of its own, one for the process."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._cancelled = -math.inf
        self._lock = threading.Lock()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, daemon=True).start()
                atexit.register(self._end)
            return self._loop

    def run(self, request: "Coroutine[Any, Any, Result]") -> Result:
        """Its result; raise what it raises, Silent, or KeyboardInterrupt when the run is to
        stop.
        """
        future = asyncio.run_coroutine_threadsafe(request, self._running())
        try:
            return _wait(future)
        except Silent:
            # Its connection is closed, so that it cannot come to pass later, after what is asked
            # next.
            future.cancel()
            self._cancelled = time.monotonic()
            raise

    def _end(self) -> None:
        """Before Python goes: the library must not come back to it, or it says so on the terminal.

        So what still runs is not cancelled, which would wake it up, and what was has a moment to
        settle. The connections are closed with the process.
        """
        time.sleep(max(0.0, self._cancelled + _SETTLED - time.monotonic()))


def _wait(future: "concurrent.futures.Future[Result]") -> Result:
    begun = looked = time.monotonic()
    moved, count = begun, -1
    while True:
        # In steps: obstore's requests run outside Python, where no signal reaches them. A handler
        # of Python's runs between two of these.
        try:
            return future.result(stopping.STEP)
        except TimeoutError:
            if future.done():
                raise
        stopping.check()
        now = time.monotonic()
        if now - looked >= min(_LOOK, objects.silence() / 4):
            looked, seen = now, traffic()
            if seen != count:
                moved, count = now, seen
            elif now - moved >= objects.silence():
                raise Silent(now - moved)


REQUESTS = Requests()
