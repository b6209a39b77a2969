# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent in this process, called as by qrexec."""

import contextlib
import os
import threading
from pathlib import Path
from typing import IO

from backup_vm.agent.transport import Connection
from dom0_agent.rpc import dispatch


class InProcess:
    """A transport that runs the services in threads of this process, with pipes for streams and
    qrexec's environment.
    """

    def __init__(self, config: Path, caller: str = "backup-vm") -> None:
        self.config, self.caller = config, caller

    def start(
        self, name: str, qube: str | None, volume: str, stdin: IO[bytes] | None = None
    ) -> Connection:
        environ = {"QREXEC_REMOTE_DOMAIN": self.caller, "QREXEC_SERVICE_ARGUMENT": volume}
        if qube is None or qube.startswith("@"):
            keyword = (qube or "@adminvm").removeprefix("@")
            environ |= {
                "QREXEC_REQUESTED_TARGET_TYPE": "keyword",
                "QREXEC_REQUESTED_TARGET_KEYWORD": keyword,
            }
        else:
            environ |= {"QREXEC_REQUESTED_TARGET_TYPE": "name", "QREXEC_REQUESTED_TARGET": qube}
        return Connection(ThreadProcess(self.config, name, environ))  # type: ignore[arg-type]


class ThreadProcess:
    """As much of subprocess.Popen as Connection uses."""

    def __init__(self, config: Path, name: str, environ: dict[str, str]) -> None:
        to_read, to_write = os.pipe(), os.pipe()
        self.stdin, self.stdout = open(to_read[1], "wb"), open(to_write[0], "rb")
        self.code = -1

        def work() -> None:
            with (
                open(to_read[0], "rb") as stdin,
                contextlib.suppress(BrokenPipeError),
                open(to_write[1], "wb") as stdout,
            ):
                self.code = dispatch.run(name, environ, config, stdin, stdout)

        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()

    def wait(self, timeout: float | None = None) -> int:
        self.thread.join(timeout)
        return self.code

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self.stdin.close()
