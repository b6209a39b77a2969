# SPDX-License-Identifier: GPL-2.0-or-later
"""Transport ``qrexec``: from a qube, through ``qrexec-client-vm``. dom0's policy decides what is
allowed.
"""

from typing import IO

from backup_vm.agent.transport import Connection, Transport
from backup_vm.agent.transport.spawning import spawn
from backup_vm.paths import QREXEC_CLIENT
from common.override import override

CLIENT = str(QREXEC_CLIENT)


class QrexecTransport(Transport):
    """Services of dom0, by qrexec-client-vm."""

    @override
    def start(
        self, service: str, qube: str | None, volume: str, stdin: IO[bytes] | None = None
    ) -> Connection:
        name = f"sparsebak.{service}+{volume}" if volume else f"sparsebak.{service}"
        return spawn([CLIENT, qube or "@adminvm", name], None, stdin)
