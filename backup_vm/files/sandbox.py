# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process gives up before it parses what somebody else wrote.

What it must give up (new descriptors, memory, processes) it does by limits that every Linux has;
what it can give up besides depends on the kernel, and is tried.
"""

import os
import resource
import signal
from contextlib import suppress

MEMORY, CHECKER_MEMORY = 768 << 20, 4 << 30
PROCESSOR_SECONDS = 2 * 3600
NOBODY = 65534
_SET_DEATH_SIGNAL, _SET_DUMPABLE, _SET_NO_NEW_PRIVILEGES = 1, 4, 38
_NEW_MOUNTS, _NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_NETWORK = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x40000000
)  # fmt: skip
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""Numbers of landlock's system calls, on every processor."""
_RIGHTS = (0, 1 << 13, 1 << 14, 1 << 15, 1 << 15, 1 << 16)
"""One more than the highest right on files that each version of landlock knows."""
_EXECUTE, _WRITE, _READ, _LIST, _TRUNCATE = 1, 2, 4, 8, 1 << 14
_PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/proc")


def enter() -> None:
    """Keep nothing but standard input, and no right but to compute. Raises OSError where one of
    the limits cannot be set.
    """
    os.closerange(1, 65536)
    _give_up()
    _limit(
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CPU, PROCESSOR_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 1),  # what is open stays: nothing else can be opened
    )


def enter_for(image: int, seconds: int, writing: bool) -> None:
    """Keep what a program needs that is to check a file system: standard streams, one file to read,
    and to write if ``writing``, by its descriptor, and programs and libraries to read. Raises
    OSError.

    Its user is another one, if that was root; the image must be that one's.
    """
    os.closerange(3, image)
    os.closerange(image + 1, 65536)
    size = os.fstat(image).st_size
    _give_up(image, _READ | _WRITE | _TRUNCATE if writing else _READ)
    _limit(
        (resource.RLIMIT_AS, CHECKER_MEMORY),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_NOFILE, 64),
        # xfs_repair, which only reads, wants none of this kind and ends otherwise
        *([(resource.RLIMIT_FSIZE, size)] if writing else []),
    )


def _limit(*limits: tuple[int, int]) -> None:
    for limit, most in ((resource.RLIMIT_CORE, 0), *limits):
        hard = resource.getrlimit(limit)[1]
        if hard != resource.RLIM_INFINITY:  # what the user or a unit set, and nobody may raise
            most = min(most, hard)
        resource.setrlimit(limit, (most, most))


def _give_up(image: int | None = None, rights: int = 0) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    os.chdir("/")
    worlds = _NEW_NETWORK | _NEW_IPC | _NEW_UTS | _NEW_MOUNTS
    if libc.unshare(worlds):  # not root: with users of its own, to whom that is allowed
        libc.unshare(_NEW_USER | worlds)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    if libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no new privileges")
    libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    _restrict(libc, image, rights)


def _restrict(libc: object, image: int | None, rights: int) -> None:
    """Landlock: no file, no connection, and no signal to or look into another process; with an
    ``image`` that file, with these rights, and programs to run.
    """
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
        if image is not None:
            for name in filter(os.path.exists, _PROGRAMS):
                folder = os.open(name, os.O_PATH | os.O_CLOEXEC)
                rule = pack("<Qi", files & (_EXECUTE | _READ | _LIST), folder)
                call(_ADD_RULE, handle, 1, rule, 0)
                os.close(folder)
            rule = pack("<Qi", files & rights, image)
            call(_ADD_RULE, handle, 1, rule, 0)
        call(_RESTRICT_SELF, handle, 0)
        with suppress(OSError):
            os.close(handle)
