# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process gives up before it parses what somebody else wrote.

What it must give up (new descriptors, memory, processes) it does by limits that every Linux has;
what it can give up besides depends on the kernel, and is tried.
"""

import os
import resource
import signal
from contextlib import suppress

MEMORY = 768 << 20
PROCESSOR_SECONDS = 2 * 3600
_NOBODY = 65534
_SET_DEATH_SIGNAL, _SET_DUMPABLE, _SET_NO_NEW_PRIVILEGES = 1, 4, 38
_NEW_MOUNTS, _NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_NETWORK = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x40000000
)  # fmt: skip
_CREATE_RULESET, _RESTRICT_SELF = 444, 446
"""Numbers of landlock's system calls, on every processor."""
_RIGHTS = (0, 1 << 13, 1 << 14, 1 << 15, 1 << 15, 1 << 16)
"""One more than the highest right on files that each version of landlock knows."""


def enter() -> None:
    """Keep nothing but standard input, and no right but to compute. Raises OSError where one of
    the limits cannot be set.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    os.closerange(1, 65536)
    os.chdir("/")
    worlds = _NEW_NETWORK | _NEW_IPC | _NEW_UTS | _NEW_MOUNTS
    if libc.unshare(worlds):  # not root: with users of its own, to whom that is allowed
        libc.unshare(_NEW_USER | worlds)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    if libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no new privileges")
    libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    _restrict(libc)
    for limit, most in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CPU, PROCESSOR_SECONDS),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 1),  # what is open stays: nothing else can be opened
    ):
        resource.setrlimit(limit, (most, most))


def _restrict(libc: object) -> None:
    """Landlock: no file, no connection, and no signal to or look into another process."""
    import ctypes
    from struct import pack

    call = libc.syscall  # type: ignore[attr-defined]
    version = call(_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return
    files = _RIGHTS[min(version, len(_RIGHTS) - 1)] - 1
    parts = [files]
    if version >= 4:
        parts.append(3)  # TCP: bind and connect
    if version >= 6:
        parts.append(3)  # sockets without a file, and signals
    rules = pack(f"<{len(parts)}Q", *parts)
    handle = call(_CREATE_RULESET, rules, ctypes.c_size_t(len(rules)), 0)
    if handle >= 0:
        call(_RESTRICT_SELF, handle, 0)
        with suppress(OSError):
            os.close(handle)
