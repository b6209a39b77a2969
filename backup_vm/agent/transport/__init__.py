# SPDX-License-Identifier: GPL-2.0-or-later
"""How the services are reached: one module for each way. All give a process with qrexec's
streams.
"""

import contextlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from backup_vm.errors import UsageError
from wire.names import BadName, parse_name

if TYPE_CHECKING:
    from common.programs import LastWords


class Process(Protocol):
    """As much of subprocess.Popen as a Connection uses: streams to both sides, and an end."""

    @property
    def stdin(self) -> IO[bytes] | None:
        """The stream to it; closing it says that nothing more comes."""

    @property
    def stdout(self) -> IO[bytes] | None:
        """The stream from it."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; returns the exit code."""

    def kill(self) -> None:
        """End it by force."""


class Connection:
    """A service that is running. ``log`` keeps the end of what it writes to standard error, where
    that comes across.
    """

    def __init__(self, process: Process, log: "LastWords | None" = None) -> None:
        self.process, self.log = process, log

    def last_words(self) -> str:
        """The last line of the log, of a service that has ended, without its priority."""
        lines = self.log.text().split("\n") if self.log is not None else []
        last = next((line for line in reversed(lines) if line.strip()), "").strip()
        return last[3:] if last[:1] == "<" and last[2:3] == ">" else last

    def hang_up(self) -> None:
        """Close the streams; a service that has sent its status ends by itself then, and need not
        be waited for.
        """
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def kill(self) -> None:
        """End it by force."""
        self.process.kill()

    def close(self) -> None:
        """Hang up and wait for its end."""
        self.hang_up()
        self.process.wait()


class Transport(Protocol):
    """A way to reach the agent."""

    def start(
        self, service: str, qube: str | None, volume: str, stdin: IO[bytes] | None = None
    ) -> Connection:
        """Start ``sparsebak.SERVICE+VOLUME`` for a qube (None: dom0). ``stdin`` is a file to be
        read in a pipe's place.
        """


def open_transport(agent: str, caller: str) -> Transport:
    """``qrexec``, ``local:AGENT.TOML``, or ``unix:DIR`` with the sockets of a resident agent."""
    if agent == "qrexec":
        from backup_vm.agent.transport.qrexec import QrexecTransport

        return QrexecTransport()
    try:
        parse_name(caller, "--caller")
    except BadName as error:
        raise UsageError(str(error)) from None
    kind, _, config = agent.partition(":")
    if kind not in ("local", "unix") or not config:
        raise UsageError(
            f"--agent {agent!r} is neither 'qrexec' nor 'local:AGENT.TOML' nor 'unix:DIR'"
        )
    if kind == "unix":
        from backup_vm.agent.transport.unix import UnixTransport

        return UnixTransport(Path(config), caller)
    from backup_vm.agent.transport.local import LocalTransport

    return LocalTransport(Path(config), caller)
