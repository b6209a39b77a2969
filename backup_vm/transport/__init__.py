"""How the services are reached: one module for each way. All give a process with qrexec's streams."""

import contextlib
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from backup_vm.errors import AgentError, UsageError


@dataclass
class Connection:
    """A service that is running. ``log`` holds what it wrote to standard error, as far as that comes across."""

    process: "subprocess.Popen[bytes]"
    log: IO[bytes]

    def last_words(self) -> str:
        """The last line of the log."""
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "").strip()

    def hang_up(self) -> None:
        """Close the streams; a service that has sent its status ends by itself then, and need not be waited for."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def close(self) -> None:
        """Hang up and wait for its end, which comes by force if it does not come soon."""
        self.hang_up()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


class Transport(Protocol):
    """A way to reach the agent."""

    def start(self, service: str, qube: str | None, volume: str, stdin: IO[bytes] | None = None) -> Connection:
        """Start ``sparsebak.SERVICE+VOLUME`` for a qube (None: dom0). ``stdin`` is a file to be read in a pipe's place."""


def spawn(arguments: list[str], environment: dict[str, str] | None, stdin: IO[bytes] | None) -> Connection:
    """Start a process in a session of its own, so that Ctrl-C reaches us and not it."""
    log = tempfile.TemporaryFile()
    try:
        process = subprocess.Popen(
            arguments,
            stdin=stdin or subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,
            bufsize=1 << 18,
        )
    except OSError as error:
        log.close()
        raise AgentError(f"cannot start {arguments[0]}: {error.strerror}") from None
    return Connection(process, log)


def open_transport(agent: str, caller: str) -> Transport:
    """``qrexec``, ``local:AGENT.TOML``, or ``unix:DIR`` with the sockets of a resident agent."""
    if agent == "qrexec":
        from backup_vm.transport.qrexec import QrexecTransport

        return QrexecTransport()
    kind, _, config = agent.partition(":")
    if kind not in ("local", "unix") or not config:
        raise UsageError(f"--agent {agent!r} is neither 'qrexec' nor 'local:AGENT.TOML' nor 'unix:DIR'")
    if kind == "unix":
        from backup_vm.transport.unix import UnixTransport

        return UnixTransport(Path(config), caller)
    from backup_vm.transport.local import LocalTransport

    return LocalTransport(Path(config), caller)
