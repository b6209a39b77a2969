# SPDX-License-Identifier: GPL-2.0-or-later
"""A FUSE file system that hands everything on to a folder, and fails where it is to.

The real thing below it is a folder of this machine, the kernel's own FUSE above: what a program
meets is what a failing disk, a full one, a quota or a network mount answers. ``FaultFS`` is what
tests use (as the fixture ``faultfs``); the file system itself is ``faultfs_server``.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE

WRITING = (
    *("create", "open_to_write", "write", "truncate", "mkdir", "rmdir", "unlink", "rename"),
    *("link", "symlink", "chmod", "chown", "utimens", "fallocate"),
)
"""Operations that a read-only file system refuses."""
OPTIONS = ("direct_io", "statfs_zero", "no_flock", "no_punch", "fixed_mode", "no_replace")
"""``direct_io``: no shared mmap; ``statfs_zero``: 0 blocks; ``no_flock``: flock is not handed on,
each mount has its own; ``no_punch``: no holes; ``fixed_mode``: chmod is refused; ``no_replace``: no
rename onto a name that exists."""


@dataclass(frozen=True)
class Fault:
    """One fault. ``operation`` and ``path`` are patterns (``fnmatch``), ``path`` of the name within
    the mount: ``packs/*``; it is met by what a folder of that name holds, too. Several patterns of
    operations are separated by commas.

    After ``after`` calls that go well, ``times`` calls fail (None: all). With ``short`` a write
    takes so many bytes instead; with ``delay`` the call waits so many seconds first. ``then`` is
    the error of all calls after those. Operations: those of FUSE, such as write, fsync, fsyncdir,
    create, open, open_to_write (of a file that is there; an open, too), read, release, flush (only
    of what was open for writing), unlink, rename, link, mkdir, readdir, getattr, statfs, truncate,
    fallocate.
    """

    operation: str
    error: str = ""
    path: str = "*"
    after: int = 0
    times: int | None = None
    short: int = 0
    delay: float = 0.0
    then: str = ""


class FaultFS:
    """A mounted one. ``path`` is where it is mounted, ``real`` the folder below it."""

    def __init__(self, folder: Path, *options: str, path: Path | None = None) -> None:
        unknown = set(options) - set(OPTIONS)
        assert not unknown, f"no such options: {unknown}"
        self.real, self.path = folder / "real", path or folder / "mount"
        for made in (self.real, self.path):
            made.mkdir(parents=True, exist_ok=True)
        self._socket = folder / f"{self.path.name}.socket"
        command = [sys.executable, "-m", "tests.faultfs_server", self.real, self.path, self._socket]
        self._process = subprocess.Popen([*command, *options], cwd=Path(__file__).parent.parent)
        deadline = time.monotonic() + PATIENCE
        while not os.path.ismount(self.path):
            assert self._process.poll() is None and time.monotonic() < deadline, "not mounted"
            time.sleep(0.01)

    def fail(self, *faults: Fault) -> None:
        """These faults from now on, and no others; counting begins again. None: all goes well."""
        self._ask({"faults": [asdict(fault) for fault in faults]})

    def read_only(self, after: int = 0) -> None:
        """Refuse every change, as a disk that was mounted read-only after an error."""
        self.fail(*(Fault(operation, "EROFS", after=after) for operation in WRITING))

    def calls(self) -> dict[str, int]:
        """How often each operation was called since ``fail``."""
        return {str(key): int(value) for key, value in self._ask({})["calls"].items()}

    def seen(self) -> list[int]:
        """For each fault, how many calls it counted since ``fail``."""
        return [int(count) for count in self._ask({})["seen"]]

    def failed(self) -> list[str]:
        """The first calls that met a fault since ``fail``: operation and name within the mount."""
        return [str(call) for call in self._ask({})["failed"]]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(str(self._socket))
            with one.makefile("rw") as stream:
                print(json.dumps(request), file=stream, flush=True)
                answer: dict[str, Any] = json.loads(stream.readline())
                return answer

    def close(self) -> None:
        """Unmount."""
        with contextlib.suppress(OSError):
            self.fail()
        subprocess.run(["fusermount3", "-u", "-z", self.path], check=False)
        self._process.terminate()  # what still has a file open there keeps it otherwise
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def missing() -> str:
    """What keeps such a file system from being mounted here; empty if nothing does."""
    if not os.path.exists("/dev/fuse"):
        return "no /dev/fuse"
    return "" if shutil.which("fusermount3") else "fusermount3 is not installed"
