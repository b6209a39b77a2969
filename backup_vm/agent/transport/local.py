# SPDX-License-Identifier: GPL-2.0-or-later
"""Transport ``local``: runs the very service files as child processes, in the environment that
qrexec would give them.

For Linux without Qubes, where the agent and the archive are on one machine. The caller is ``dom0``,
which may use every archive, unless another name is given.
"""

import os
import sys
from pathlib import Path
from typing import IO

from backup_vm.agent.transport import Connection, Transport
from backup_vm.agent.transport.spawning import spawn
from backup_vm.errors import AgentError
from common.existing import exists, is_file
from common.override import override

_TREE = Path(__file__).resolve().parents[3]
SERVICE_FOLDERS = (_TREE / "qubes-rpc", Path("/etc/qubes-rpc"))
_KEPT = ("PATH", "HOME", "LANG", "USER", "LOGNAME")


class LocalTransport(Transport):
    """Service files of this machine, as child processes."""

    def __init__(self, config: Path, caller: str) -> None:
        if not is_file(config):
            raise AgentError(
                f"there is no agent configuration {config}", "name it as --agent local:AGENT.TOML"
            )
        self._config, self._caller = config.resolve(), caller

    @override
    def start(
        self, service: str, qube: str | None, volume: str, stdin: IO[bytes] | None = None
    ) -> Connection:
        name = f"sparsebak.{service}"
        file = next((folder / name for folder in SERVICE_FOLDERS if exists(folder / name)), None)
        if file is None:
            raise AgentError(
                f"{name} is not installed on this machine", "install the agent's package"
            )
        environment = {key: os.environ[key] for key in _KEPT if key in os.environ}
        environment |= {
            "QREXEC_REMOTE_DOMAIN": self._caller,
            "QREXEC_SERVICE_FULL_NAME": f"{name}+{volume}",
            "QREXEC_SERVICE_ARGUMENT": volume,
            "SPARSEBAK_AGENT_CONFIG": str(self._config),
        }
        if file.parent != SERVICE_FOLDERS[1]:
            environment |= {"SPARSEBAK_LIB": str(_TREE), "SPARSEBAK_PYTHON": sys.executable}
        if qube is None or qube.startswith("@"):
            keyword = (qube or "@adminvm").removeprefix("@")
            environment |= {
                "QREXEC_REQUESTED_TARGET_TYPE": "keyword",
                "QREXEC_REQUESTED_TARGET_KEYWORD": keyword,
            }
        else:
            environment |= {"QREXEC_REQUESTED_TARGET_TYPE": "name", "QREXEC_REQUESTED_TARGET": qube}
        return spawn([str(file), volume] if volume else [str(file)], environment, stdin)
