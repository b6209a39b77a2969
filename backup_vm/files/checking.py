# SPDX-License-Identifier: GPL-2.0-or-later
"""Checking a file system in an image by the program that its authors wrote for that, where it is
installed. It runs without rights (see checker), on a file of which nothing else depends.
"""

import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from backup_vm import stopping
from backup_vm.files import sandbox
from backup_vm.files.answers import Part
from backup_vm.files.claims import KINDS

_FOLDERS = "/usr/sbin:/sbin:/usr/bin:/bin"
_KEPT = 4 << 10
"""Bytes of a checker's output that are kept: the last ones say why it ended."""


class Verdict(NamedTuple):
    """What a checker says. ``sound`` is None where it says nothing: there is none, or it cannot
    check this.
    """

    sound: bool | None
    program: str
    text: str


class _Checker(NamedTuple):
    """What is run one after the other, each with the exit codes that let it continue; and which
    code says that the file system is damaged. Any other code says nothing.
    """

    program: str
    lines: tuple[tuple[tuple[str, ...], tuple[int, ...]], ...]
    damaged: int


_CHECKERS = {
    # What a mount would do first (replay the journal, delete files that were deleted while they
    # were open) is no damage, and must be done before -n.
    "ext4": _Checker("e2fsck", ((("-p", "IMAGE"), (0, 1, 2, 4)), (("-f", "-n", "IMAGE"), (0,))), 4),
    "xfs": _Checker("xfs_repair", ((("-n", "-f", "IMAGE"), (0,)),), 1),
    # It looks at everything that is mounted, to which it has no right here, and ends with 1 where
    # any Btrfs is: --force leaves that out.
    "btrfs": _Checker("btrfs", ((("check", "--readonly", "--force", "IMAGE"), (0,)),), 1),
}


def check(descriptor: int, part: Part, replayed: bool, seconds: float) -> Verdict:
    """Have a file system checked that is in a file, which may be changed by that. ``replayed``:
    whether its journal has nothing to replay. Raises KeyboardInterrupt.
    """
    checker = _CHECKERS.get(part.kind)
    if checker is None:
        own = part.kind in KINDS
        return Verdict(None, "", "" if own else "no program checks that here")
    if part.name:
        return Verdict(None, "", "no program checks a logical volume here")
    name, lines, damaged = checker
    program = shutil.which(name, path=_FOLDERS)
    if program is None:
        return Verdict(None, "", f"{name} is not installed")
    image = f"/proc/self/fd/{descriptor}"
    if part.start:
        if part.kind != "ext4":
            return Verdict(None, "", f"{name} checks none within a partition")
        image += f"?offset={part.start}"
    if part.kind == "xfs" and not replayed:
        return Verdict(None, "", "only a mount replays the journal, which xfs_repair wants first")
    if os.geteuid() == 0:
        os.fchown(descriptor, sandbox.NOBODY, sandbox.NOBODY)
    until = time.monotonic() + seconds
    for line, good in lines:
        command = [program, *(image if word == "IMAGE" else word for word in line)]
        # e2fsck -p alone may change it
        rights = "writing" if "-p" in line else "reading"
        code, said = _run(command, descriptor, until, rights)
        if code is None or code == -signal.SIGXCPU:
            return Verdict(None, name, f"{name} took too long")
        if code not in good:
            what = said or f"it ended with {code}"
            found = code == damaged
            return Verdict(False if found else None, name, f"{name}: {what}")
    return Verdict(True, name, "")


def _run(command: list[str], descriptor: int, until: float, rights: str) -> tuple[int | None, str]:
    """Exit code, None where time ran out, and the last line that was printed."""
    seconds = max(1, int(until - time.monotonic()))
    program, root = Path(__file__).with_name("checker.py"), Path(__file__).parent.parent.parent
    words = [sys.executable, "-I", "-S", str(program), str(root)]
    words += [str(descriptor), str(seconds), rights]
    process = subprocess.Popen(
        [*words, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env={},
        pass_fds=[descriptor],
        start_new_session=True,  # Ctrl-C is for the command
    )
    if process.stdout is None:
        raise AssertionError("it is a pipe")
    with process.stdout:
        try:
            said = _printed(process.stdout, until)
            if said is None or not _ended(process, until):
                return None, ""
            return process.returncode, _last_line(said)
        finally:
            process.kill()
            process.wait()


def _printed(stream: IO[bytes], until: float) -> bytes | None:
    """The end of what a program prints, once it prints no more; None where time ran out."""
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            stopping.check()
            if time.monotonic() > until:
                return None
            if selector.select(stopping.STEP):
                data = os.read(stream.fileno(), 1 << 16)
                if not data:
                    return said
                said = (said + data)[-_KEPT:]


def _ended(process: "subprocess.Popen[bytes]", until: float) -> bool:
    """Whether a program ends in time: one that an image has taken over may close what it prints
    to, and stay.
    """
    while process.poll() is None:
        if time.monotonic() > until:
            return False
        stopping.check()
        with suppress(subprocess.TimeoutExpired):
            process.wait(stopping.STEP)
    return True


def _last_line(said: bytes) -> str:
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines()]
    return next((line[:200] for line in reversed(lines) if line), "")
