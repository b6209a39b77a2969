# SPDX-License-Identifier: GPL-2.0-or-later
"""Before the first byte of a request: whose connection it is, how many there are, and how long one
may say nothing. Anybody on the machine can connect to a port of loopback, and keep on trying.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from backup_vm.ui import peer

PATIENCE = 5.0
"""Seconds from a connection to its first whole request."""
MOST = 64
"""Connections at once; a browser makes six for all its tabs."""


class Doors:
    """All connections of a server; ``uid``: whose they must be."""

    def __init__(self, uid: int) -> None:
        self._uid = uid
        self._waiting: dict[asyncio.BaseTransport, asyncio.TimerHandle] = {}
        self._open: set[asyncio.BaseTransport] = set()

    def before(self, make: Callable[[], asyncio.Protocol]) -> Callable[[], asyncio.Protocol]:
        """What makes the protocols of connections, with a door before each."""
        return lambda: _Door(self, make())

    def admitted(self, transport: asyncio.BaseTransport | None) -> None:
        """A whole request that may be answered has come on it."""
        if transport is not None and (timer := self._waiting.pop(transport, None)):
            timer.cancel()

    def enters(self, transport: asyncio.Transport) -> bool:
        """Whether a connection may stay."""
        if len(self._open) >= MOST:
            return False
        with suppress(OSError):  # no such table here: the guard looks at the secrets
            ends = (transport.get_extra_info(name) for name in ("peername", "sockname"))
            remote, local = (end[:2] if end else None for end in ends)
            if remote is None or local is None or peer.owner(remote, local) != self._uid:
                return False
        self._open.add(transport)
        loop = asyncio.get_running_loop()
        self._waiting[transport] = loop.call_later(PATIENCE, transport.abort)
        return True

    def leaves(self, transport: asyncio.BaseTransport | None) -> None:
        """A connection is gone."""
        if transport is not None:
            self.admitted(transport)
            self._open.discard(transport)


class _Door(asyncio.Protocol):
    """Stands before the protocol of one connection."""

    def __init__(self, doors: Doors, behind: asyncio.Protocol) -> None:
        self._doors, self._behind = doors, behind
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport) and self._doors.enters(transport):
            self._transport = transport
            self._behind.connection_made(transport)
        elif isinstance(transport, asyncio.Transport):
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._transport is not None:
            self._behind.data_received(data)

    def eof_received(self) -> bool | None:
        return self._behind.eof_received() if self._transport is not None else None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._doors.leaves(self._transport)
            self._behind.connection_lost(exc)

    def pause_writing(self) -> None:
        self._behind.pause_writing()

    def resume_writing(self) -> None:
        self._behind.resume_writing()
