# SPDX-License-Identifier: GPL-2.0-or-later
"""A few connections to an SFTP host, shared by all threads of a run."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from backup_vm import stopping
from backup_vm.archive.storage.objects import Unreachable
from backup_vm.archive.storage.sftp_protocol import Client, Refused
from backup_vm.archive.storage.ssh import Channel, Host
from backup_vm.errors import SparsebakError

_CONNECTIONS = 4


class Connections:
    """A few connections to a host, each used by one thread at a time, made when they are needed."""

    def __init__(self, host: Host) -> None:
        self._host, self._idle = host, list[Client]()
        self._there, self._most = 0, _CONNECTIONS
        self._changed = threading.Condition()

    @contextmanager
    def one(self) -> Iterator[Client]:
        """A connection for oneself. After an error that leaves answers on their way it is
        closed.
        """
        client = self._take()
        try:
            yield client
        except BaseException as error:
            if isinstance(error, Refused | SparsebakError) and not client.flying:
                self._give(client)
            else:
                client.end()
                self._give(None)
            raise
        self._give(client)

    def _take(self) -> Client:
        while True:
            with self._changed:
                while not self._idle and self._there >= self._most:
                    stopping.check()
                    self._changed.wait(stopping.STEP)
                if self._idle:
                    return self._idle.pop()
                self._there += 1
            try:
                return self._connect()
            except Unreachable:
                with self._changed:
                    self._there -= 1
                    if not self._there:
                        raise
                    self._most = self._there  # a server that takes no more than those we have
            except BaseException:
                self._give(None)
                raise

    def _connect(self) -> Client:
        channel = Channel(self._host)
        try:
            return Client(channel)
        except BaseException:
            channel.close()
            raise

    def _give(self, client: Client | None) -> None:
        with self._changed:
            if client is None:
                self._there -= 1
            else:
                self._idle.append(client)
            self._changed.notify()
