# SPDX-License-Identifier: GPL-2.0-or-later
"""The streams of a call, given up when the other side is silent or as good as silent: it must not
hold a lock, a session or a place for ever.
"""

import os
import select
import signal
import time
from types import FrameType

from common.override import override
from dom0_agent.rpc.limits import FIRST_BYTE
from wire.stream import CutShort, Reader, Writer

BLOCK = 1 << 18
"""Bytes read at once from a caller, at most, whatever is asked for: about what a socket holds."""
IOV_MAX = 1024
"""Parts that writev takes at once, at most (Linux, UIO_MAXIOV)."""
PATIENCE = 300.0
"""Seconds without a byte from the caller after which a call is given up."""
LEAST = 1 << 20
"""Bytes that have to come, or to be taken, for every PATIENCE seconds of waiting: a trickle holds
as much as silence.
"""


class _Waiting:
    """Time spent waiting for the other side, and what came of it."""

    def __init__(self, patience: float) -> None:
        self._patience, self._waited, self._moved = patience, 0.0, 0

    def add(self, since: float, moved: int) -> bool:
        """Note a wait since a monotonic time; whether the other side is too slow to be waited for
        any longer.
        """
        self._waited += time.monotonic() - since
        self._moved += moved
        if self._waited <= self._patience:
            return False
        too_slow = self._moved < LEAST
        self._waited, self._moved = 0.0, 0
        return too_slow


class PatientReader(Reader):
    """Standard input, given up when nothing comes for ``patience`` seconds: a silent caller must
    not hold a volume's lock.

    The first byte may take ``first`` seconds: calls are started ahead, and nothing is held before
    the request is there.
    """

    def __init__(self, fd: int, patience: float = PATIENCE, first: float = FIRST_BYTE) -> None:
        self._fd, self._patience, self._first, self._begun = fd, patience, first, False
        self._held = memoryview(b"")
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._waiting = _Waiting(patience)

    @override
    def read(self, size: int, /) -> memoryview:
        if not self._held:
            begun, since = self._begun, time.monotonic()
            self.wait()
            # As much as is there, and handed on in parts: a chunk that is copied out of a buffer of
            # its own first costs an eighth of a verify.
            self._held = memoryview(self._there())
            if begun and self._waiting.add(since, len(self._held)):
                raise CutShort(f"the caller sent almost nothing in {self._patience:g} seconds")
        data, self._held = self._held[:size], self._held[size:]
        return data

    def _there(self) -> bytes:
        """What has come; nothing at the stream's end, also where the caller left with something
        unread.
        """
        try:
            return os.read(self._fd, BLOCK)
        except ConnectionResetError:
            return b""

    @property
    def begun(self) -> bool:
        """Whether the first byte has come."""
        return self._begun

    def wait(self) -> None:
        """Wait for the next byte; CutShort when it does not come."""
        patience = self._patience if self._begun else self._first
        if not self._held and not self._poll.poll(patience * 1000):
            raise CutShort(f"the caller sent nothing for {patience:g} seconds")
        self._begun = True


class PatientWriter(Writer):
    """Standard output, given up when the caller takes nothing for ``patience`` seconds: it must not
    hold a session for ever.

    For the main thread only; the alarm is what ends a write that blocks.
    """

    def __init__(self, fd: int, patience: float = PATIENCE) -> None:
        self._fd, self._patience = fd, patience
        self._waiting = _Waiting(patience)
        signal.signal(signal.SIGALRM, self._stalled)

    def _stalled(self, number: int, frame: FrameType | None) -> None:
        raise BrokenPipeError(f"the caller read nothing for {self._patience:g} seconds")

    @override
    def write(self, data: bytes, /) -> None:
        self.writelines([data])

    @override
    def writelines(self, parts: list[bytes], /) -> None:
        # Nothing is joined, which would be a copy of all that leaves dom0.
        at, left = 0, [memoryview(part) for part in parts]
        try:
            while at < len(left):
                signal.setitimer(signal.ITIMER_REAL, self._patience)
                since = time.monotonic()
                written = os.writev(self._fd, left[at : at + IOV_MAX])
                if self._waiting.add(since, written):
                    raise BrokenPipeError(
                        f"the caller read almost nothing in {self._patience:g} seconds"
                    )
                while at < len(left) and written >= len(left[at]):
                    written -= len(left[at])
                    at += 1
                if written:
                    left[at] = left[at][written:]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    @override
    def flush(self) -> None:
        """Nothing is kept back."""
