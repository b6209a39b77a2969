# SPDX-License-Identifier: GPL-2.0-or-later
"""The resident agent with what its unit leaves it of root's capabilities, or with one less."""

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from backup_vm.agent.client import Agent
from backup_vm.agent.transport.unix import UnixTransport
from tests.kit import Site

ROOT = Path(__file__).parent.parent
UNIT = ROOT / "systemd/dom0/sparsebak-agent.service"
_ALL = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE"
    " NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO"
    " SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME"
    " SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG"
    " WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
NAMES = _ALL.split()
"""By number, as linux/capability.h has them."""
_DROP, _NO_NEW_PRIVILEGES = 24, 38  # prctl(2)


def capabilities(unit: Path = UNIT) -> list[str]:
    """Those that the unit leaves, without ``CAP_``."""
    (line,) = [one for one in unit.read_text().splitlines() if one.startswith("CapabilityBounding")]
    return [name.removeprefix("CAP_") for name in line.partition("=")[2].split()]


def dropping(kept: list[str]) -> Callable[[], None]:
    """What a child does before it runs a program, which then has no more of root's capabilities."""
    libc = ctypes.CDLL(None)
    gone = [number for number, name in enumerate(NAMES) if name not in kept]

    def drop() -> None:
        for number in gone:
            libc.prctl(_DROP, number, 0, 0, 0)  # one that this kernel has not is none to lose
        libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)

    return drop


@contextmanager
def resident(site: Site, without: str = "") -> Iterator[Agent]:
    """The agent, for the archive of a site, which takes it in place of its own."""
    sockets = site.root / "sockets"
    main = "import sys; from dom0_agent.admin.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", main, "--config", str(site.config), "serve"]
    kept = [name for name in capabilities() if name != without]
    with subprocess.Popen(
        [*command, "--listen", str(sockets)], stderr=subprocess.PIPE, text=True, cwd=ROOT,
        preexec_fn=dropping(kept), env=dict(os.environ),
    ) as process:  # fmt: skip
        assert process.stderr is not None
        first = process.stderr.readline()
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            assert "ready" in first, first
            agent = Agent(UnixTransport(sockets, "backup-vm"))
            with site.open() as archive:
                agent.use(archive.parameters.archive, archive.parameters.chunk_size)
            yield agent
        finally:
            process.terminate()
