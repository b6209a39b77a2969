# SPDX-License-Identifier: GPL-2.0-or-later
"""The child that parses file systems has no right to anything, and nothing else parses them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

TRIES = """
import os, signal, socket, sys
user = int(sys.argv[1])
sys.path[:] = sys.argv[2:]
from backup_vm.files import sandbox
import ctypes
parent = os.getppid()
libc = ctypes.CDLL(None, use_errno=True)
if user:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
sandbox.enter()
tries = {
    "open": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "write": lambda: os.open("/tmp/written", os.O_WRONLY | os.O_CREAT),
    "listen": lambda: socket.socket(),
    "pipe": os.pipe,
    "dup": lambda: os.dup(0),
    "fork": os.fork,
    "signal": lambda: os.kill(parent, signal.SIGTERM),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "look": lambda: os.stat("/proc/%d/mem" % parent) and libc.ptrace(16, parent, 0, 0) and 1 / 0,
    "memory": lambda: bytearray(2 << 30),
    "root": lambda: os.setuid(0),
    "link": lambda: os.symlink("/", "/tmp/linked"),
}
failed = []
for name, attempt in tries.items():
    try:
        attempt()
    except (OSError, MemoryError, ZeroDivisionError):
        continue
    failed.append(name)
os.write(0, repr(failed).encode())
"""


@pytest.mark.parametrize("user", [0, 65533])
def test_the_child_can_do_nothing_but_compute(user: int) -> None:
    user = user if os.geteuid() == 0 else 0
    ours, its = socket.socketpair()
    folders = [str(ROOT), *filter(os.path.isabs, sys.path)]
    with ours:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", TRIES, str(user), *folders],
            stdin=its.fileno(),
            cwd="/",
        )
        its.close()
        assert done.returncode == 0
        failed = ours.recv(1000).decode()
    assert failed == "[]"


@pytest.mark.parametrize("enter", ["enter()", "enter_for(image, 60, True)"])
def test_lower_limits_of_the_user_stay(enter: str) -> None:
    """As ``ulimit -v`` or a unit sets them: nobody but root may raise them, and that one is given
    up.
    """
    code = f"""
import os, resource, sys
sys.path.insert(0, sys.argv[1])
from backup_vm.files import sandbox
low = {{resource.RLIMIT_AS: 500 << 20, resource.RLIMIT_CPU: 30, resource.RLIMIT_FSIZE: 0}}
for limit, most in low.items():
    resource.setrlimit(limit, (most, most))
image = os.open("/dev/null", os.O_RDONLY)
sandbox.{enter}
assert all(resource.getrlimit(limit) == (most, most) for limit, most in low.items())
"""
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(ROOT)], stdin=subprocess.DEVNULL, check=True
    )


def test_readers_import_nothing_of_the_rest() -> None:
    for path in (ROOT / "backup_vm/files/readers").glob("*.py"):
        for line in path.read_text().splitlines():
            if "import" in line and "backup_vm" in line:
                assert "backup_vm.files.readers." in line, (path, line)


def test_the_parser_is_never_in_the_command_itself() -> None:
    """Importing all that the command uses of files brings no reader with it."""
    code = (
        "import sys, backup_vm.jobs.files, backup_vm.files.copying, backup_vm.files.showing\n"
        "assert not [m for m in sys.modules if 'files.readers' in m or 'files.child' in m]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
