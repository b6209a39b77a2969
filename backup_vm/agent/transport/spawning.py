# SPDX-License-Identifier: GPL-2.0-or-later
"""A service as a child process, for the transports that have one: ``local`` and ``qrexec``."""

import contextlib
import fcntl
import os
import signal
import subprocess
from typing import IO

from backup_vm.agent.transport import Connection
from backup_vm.errors import AgentError
from common.override import override
from common.programs import LastWords
from wire.stream import SEND_BUFFER

_PATIENCE = 5.0
"""Seconds that a service has to end when nobody talks to it any more."""


class _Child(Connection):
    """A connection to a child process."""

    def __init__(self, child: "subprocess.Popen[bytes]", log: LastWords) -> None:
        super().__init__(child, log)
        self._child = child

    @override
    def kill(self) -> None:
        """End it, and all that it started: one of them that is left would hold our pipes, and who
        writes to these would wait for ever.
        """
        if self._child.returncode is None:  # nobody waited for it, so that the number is its own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)

    @override
    def close(self) -> None:
        """The child's end comes by force if it does not come soon."""
        self.hang_up()
        try:
            self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()


def spawn(
    arguments: list[str], environment: dict[str, str] | None, stdin: IO[bytes] | None
) -> Connection:
    """Start a process in a session of its own, so that Ctrl-C reaches us and not it."""
    try:
        process = subprocess.Popen(
            arguments,
            stdin=stdin or subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
            bufsize=1 << 18,
        )
    except OSError as error:
        raise AgentError(f"cannot start {arguments[0]}: {error.strerror}") from None
    for stream in (process.stdin, process.stdout):
        # As much as a local socket holds: each side waits for the other less often, a seventh of
        # the processor time of both. Where there are pipes enough already, the kernel refuses.
        if stream is not None:
            with contextlib.suppress(OSError):
                fcntl.fcntl(stream, fcntl.F_SETPIPE_SZ, SEND_BUFFER)
    if process.stderr is None:
        raise AssertionError("it is a pipe")
    with process.stderr:
        return _Child(process, LastWords(process.stderr))
