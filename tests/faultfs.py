# SPDX-License-Identifier: GPL-2.0-or-later
"""A FUSE file system that hands everything on to a folder, and fails where it is to.

The real thing below it is a folder of this machine, the kernel's own FUSE above: what a program
meets is what a failing disk, a full one, a quota or a network mount answers. ``FaultFS`` is what
tests use (as the fixture ``faultfs``); the file system itself runs in a process of its own:
``python -m tests.faultfs REAL MOUNT SOCKET [OPTION...]``.
"""

import contextlib
import errno
import fnmatch
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

WRITING = (
    *("create", "write", "truncate", "mkdir", "rmdir", "unlink", "rename", "chmod", "utimens"),
    "fallocate",
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
    create, open, read, release, flush (only of what was open for writing), unlink, rename, mkdir,
    readdir, getattr, statfs, truncate, fallocate.
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
        command = [sys.executable, "-m", "tests.faultfs", self.real, self.path, self._socket]
        self._process = subprocess.Popen([*command, *options], cwd=Path(__file__).parent.parent)
        deadline = time.monotonic() + 20
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
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def missing() -> str:
    """What keeps such a file system from being mounted here; empty if nothing does."""
    if not os.path.exists("/dev/fuse"):
        return "no /dev/fuse"
    return "" if shutil.which("fusermount3") else "fusermount3 is not installed"


class _Faults:
    """The faults that are to be, and how often what was called."""

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._seen: list[int] = []
        self._failed: list[str] = []
        self._calls: Counter[str] = Counter()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            one, _ = self._listener.accept()
            with one, one.makefile("rw") as stream:
                request = json.loads(stream.readline())
                with self._lock:
                    if "faults" in request:
                        self._faults = [Fault(**fields) for fields in request["faults"]]
                        self._seen = [0] * len(self._faults)
                        self._failed = []
                        self._calls.clear()
                    answer = {
                        "calls": dict(self._calls),
                        "seen": self._seen,
                        "failed": self._failed,
                    }
                print(json.dumps(answer), file=stream, flush=True)

    def met(self, operation: str, path: str) -> Fault | None:
        """The fault that this call meets; counts it."""
        with self._lock:
            self._calls[operation] += 1
            for number, fault in enumerate(self._faults):
                patterns = fault.operation.split(",")
                if not any(fnmatch.fnmatchcase(operation, pattern) for pattern in patterns):
                    continue
                if not _is_within(path.lstrip("/"), fault.path):
                    continue
                seen = self._seen[number] = self._seen[number] + 1
                if seen <= fault.after:
                    continue
                if fault.times is not None and seen > fault.after + fault.times:
                    if not fault.then:
                        continue
                    fault = Fault(operation, fault.then)
                if len(self._failed) < 20:
                    self._failed.append(f"{operation} {path}")
                return fault
        return None


def _is_within(name: str, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, one) for one in (pattern, f"{pattern}/*"))


def _serve(real: str, mount: str, control: str, options: set[str]) -> None:
    from backup_vm.archive.storage import libc
    from backup_vm.jobs.libfuse import mfusepy as fuse

    faults = _Faults(control)

    def error(number: int) -> Exception:
        failure: Exception = fuse.FuseOSError(number)
        return failure

    class System(fuse.Operations):  # type: ignore[misc]
        use_ns = True
        _files: dict[int, bool] = {}  # noqa: RUF012 - there is one System
        """Open files by descriptor, and whether they were opened for writing."""
        _direct: set[int] = set()  # noqa: RUF012
        """Those of them that were opened to be written past the page cache."""

        def access(self, path: str, amode: int) -> int:
            if not os.access(real + path, amode):
                raise error(errno.EACCES)
            return 0

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            found = os.fstat(fh) if fh in self._files else os.lstat(real + path)
            names = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_ino")
            times = {f"st_{key}time": getattr(found, f"st_{key}time_ns") for key in "amc"}
            return {name: getattr(found, name) for name in names} | times

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *os.listdir(real + path)]

        def readlink(self, path: str) -> str:
            return os.readlink(real + path)

        def statfs(self, path: str) -> dict[str, int]:
            found = os.statvfs(real + path)
            names = ("bavail", "bfree", "blocks", "bsize", "favail", "ffree", "files", "frsize")
            answer = {f"f_{name}": getattr(found, f"f_{name}") for name in names}
            if "statfs_zero" in options:
                answer |= dict.fromkeys(("f_blocks", "f_bfree", "f_bavail"), 0)
            return answer | {"f_namemax": 255}

        def open(self, path: str, flags: int) -> int:
            fd = os.open(real + path, flags & ~(os.O_DIRECT | os.O_NOFOLLOW))
            self._files[fd] = flags & os.O_ACCMODE != os.O_RDONLY
            if flags & os.O_DIRECT:
                self._direct.add(fd)
            return fd

        def create(self, path: str, mode: int, fi: Any = None) -> int:
            # The kernel asks for this where it saw no such file; another mount may have made it
            # meanwhile.
            fd = os.open(real + path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
            self._files[fd] = True
            return fd

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            return os.pwrite(fh, data, offset)

        def truncate(self, path: str, length: int, fh: int | None = None) -> int:
            os.truncate(fh if fh in self._files else real + path, length)
            return 0

        def flush(self, path: str, fh: int) -> int:
            return 0

        def release(self, path: str, fh: int) -> int:
            del self._files[fh]
            self._direct.discard(fh)
            os.close(fh)
            return 0

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            return 0

        def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
            return 0

        def mkdir(self, path: str, mode: int) -> int:
            os.mkdir(real + path, mode)
            return 0

        def rmdir(self, path: str) -> int:
            os.rmdir(real + path)
            return 0

        def unlink(self, path: str) -> int:
            os.unlink(real + path)
            return 0

        def rename(self, old: str, new: str, flags: int = 0) -> int:
            if "no_replace" in options and os.path.lexists(real + new):
                raise error(errno.EEXIST)
            os.rename(real + old, real + new)
            return 0

        def symlink(self, target: str, source: str) -> int:
            os.symlink(source, real + target)
            return 0

        def link(self, target: str, source: str) -> int:
            os.link(real + source, real + target)
            return 0

        def chmod(self, path: str, mode: int) -> int:
            if "fixed_mode" in options:
                raise error(errno.EPERM)
            os.chmod(real + path, mode)
            return 0

        def chown(self, path: str, uid: int, gid: int) -> int:
            os.chown(real + path, uid, gid)
            return 0

        def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
            os.utime(real + path, ns=times)
            return 0

        if "no_punch" not in options:

            def fallocate(self, path: str, mode: int, offset: int, length: int, fh: int) -> int:
                return libc.fallocate(fh, mode, offset, length)

        if "no_flock" not in options:

            def flock(self, path: str, fh: int, operation: int) -> int:
                import fcntl

                fcntl.flock(fh, operation)
                return 0

    def guarded(name: str, method: Any) -> Any:
        def call(self: System, path: str, *args: Any) -> Any:
            if name == "flush" and not self._files.get(args[0]):
                return 0
            fault = faults.met(name, path or "")
            if fault is not None and fault.delay:
                time.sleep(fault.delay)
            if fault is not None and fault.error:
                raise error(getattr(errno, fault.error))
            # What is short past the page cache, the kernel itself answers with EIO.
            short = name == "write" and fault is not None and args[2] not in self._direct
            if short and fault is not None and fault.short:
                args = (args[0][: fault.short], *args[1:])
            return method(self, path, *args)

        return call

    class System3(fuse.FUSE):  # type: ignore[misc]
        def truncate_fuse_3(self, path: bytes | None, length: int, info: Any) -> int:
            """The library's own forgets the open file, which may have no name any more."""
            fh = info.contents.fh if info else None
            answer: int = self.operations.truncate(os.fsdecode(path or b""), length, fh)
            return answer

    for name, method in list(vars(System).items()):
        if callable(method) and not name.startswith("_"):
            setattr(System, name, guarded(name, method))
    logging.disable()
    with contextlib.suppress(RuntimeError):  # it was asked to end
        # With hard_remove a file that is open can be removed, and its folder with it, as on a disk
        # of this machine.
        System3(
            *(System(), mount),
            foreground=True,
            direct_io="direct_io" in options,
            hard_remove=True,
        )


if __name__ == "__main__":
    _serve(*sys.argv[1:4], set(sys.argv[4:]))
