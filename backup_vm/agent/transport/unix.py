# SPDX-License-Identifier: GPL-2.0-or-later
"""Transport ``unix``: a resident agent on this machine, by its sockets. The caller is dom0 unless
another is named.
"""

import contextlib
import io
import socket
from pathlib import Path
from typing import IO

from backup_vm.agent.transport import Connection, Transport
from backup_vm.errors import AgentError
from common.override import override
from wire.stream import SEND_BUFFER


class _Call:
    """A call by a socket, as a Process: as much of one as a connection uses."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.stdin = _Sending(connection)
        self.stdout = connection.makefile("rb", buffering=1 << 18)

    def wait(self, timeout: float | None = None) -> int:
        """It has ended for us when we have hung up."""
        self._connection.close()
        return 0

    def kill(self) -> None:
        """Cut the connection."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


class _Sending(io.BufferedWriter):
    """The sending side; closing it says that nothing more comes."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        super().__init__(socket.SocketIO(connection, "w"), 1 << 18)

    def close(self) -> None:
        """Flush, and end this side only."""
        if self.closed:
            return
        try:
            self.flush()
            self._socket.shutdown(socket.SHUT_WR)
        except BrokenPipeError:
            raise
        except OSError:  # the other side was first
            pass
        finally:
            super().close()


class UnixTransport(Transport):
    """Sockets of a resident agent in a folder."""

    def __init__(self, folder: Path, caller: str) -> None:
        self._folder, self._caller = folder, caller

    @override
    def start(
        self, service: str, qube: str | None, volume: str, stdin: IO[bytes] | None = None
    ) -> Connection:
        path = self._folder / f"sparsebak.{service}"
        connection = socket.socket(socket.AF_UNIX)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        try:
            connection.connect(str(path))
        except OSError as error:
            connection.close()
            hint = f"start it: sparsebak-agent serve --listen {self._folder}"
            raise AgentError(
                f"no resident agent answers at {path}: {error.strerror or error}", hint
            ) from None
        keyword = qube is None or qube.startswith("@")
        target = f"keyword {(qube or '@adminvm').removeprefix('@')}" if keyword else f"name {qube}"
        connection.sendall(
            f"sparsebak.{service}+{volume} {self._caller} {target}".encode("ascii") + b"\0"
        )
        return Connection(_Call(connection))  # type: ignore[arg-type]
