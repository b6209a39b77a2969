# SPDX-License-Identifier: GPL-2.0-or-later
"""The file system of ``faultfs``, in a process of its own: ``python -m tests.faultfs_server REAL
MOUNT SOCKET [OPTION...]``. Which faults are to be it is told over the socket.
"""

import contextlib
import errno
import fcntl
import fnmatch
import json
import logging
import os
import socket
import sys
import threading
import time
from collections import Counter
from typing import Any

from backup_vm.archive.storage import libc
from backup_vm.jobs.libfuse import mfusepy as fuse
from tests.faultfs import Fault


class Faults:
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

    def met(self, operations: tuple[str, ...], path: str) -> Fault | None:
        """The fault that this call, which goes by any of these names, meets; counts it."""
        with self._lock:
            self._calls.update(operations)
            for number, fault in enumerate(self._faults):
                patterns = fault.operation.split(",")
                if not any(fnmatch.filter(operations, pattern) for pattern in patterns):
                    continue
                if not _is_within(path.lstrip("/"), fault.path):
                    continue
                seen = self._seen[number] = self._seen[number] + 1
                if seen <= fault.after:
                    continue
                if fault.times is not None and seen > fault.after + fault.times:
                    if not fault.then:
                        continue
                    fault = Fault(operations[0], fault.then)
                if len(self._failed) < 20:
                    self._failed.append(f"{operations[0]} {path}")
                return fault
        return None


def _is_within(name: str, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, one) for one in (pattern, f"{pattern}/*"))


class Folder(fuse.Operations):  # type: ignore[misc]
    """Hands everything on to the folder ``real``, unless a call meets a fault."""

    use_ns = True

    def __init__(self, real: str, options: set[str], faults: Faults) -> None:
        self._real, self._options, self.faults = real, options, faults
        self.files: dict[int, bool] = {}
        """Open files by descriptor, and whether they were opened for writing."""
        self.direct: set[int] = set()
        """Those of them that were opened to be written past the page cache."""

    def access(self, path: str, amode: int) -> int:
        if not os.access(self._real + path, amode):
            raise fuse.FuseOSError(errno.EACCES)
        return 0

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = os.fstat(fh) if fh in self.files else os.lstat(self._real + path)
        names = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_ino")
        times = {f"st_{key}time": getattr(found, f"st_{key}time_ns") for key in "amc"}
        return {name: getattr(found, name) for name in names} | times

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self._real + path)]

    def readlink(self, path: str) -> str:
        return os.readlink(self._real + path)

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._real + path)
        names = ("bavail", "bfree", "blocks", "bsize", "favail", "ffree", "files", "frsize")
        answer = {f"f_{name}": getattr(found, f"f_{name}") for name in names}
        if "statfs_zero" in self._options:
            answer |= dict.fromkeys(("f_blocks", "f_bfree", "f_bavail"), 0)
        return answer | {"f_namemax": 255}

    def open(self, path: str, flags: int) -> int:
        fd = os.open(self._real + path, flags & ~(os.O_DIRECT | os.O_NOFOLLOW))
        self.files[fd] = flags & os.O_ACCMODE != os.O_RDONLY
        if flags & os.O_DIRECT:
            self.direct.add(fd)
        return fd

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        # The kernel asks for this where it saw no such file; another mount may have made it
        # meanwhile.
        fd = os.open(self._real + path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        self.files[fd] = True
        return fd

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        os.truncate(fh if fh in self.files else self._real + path, length)
        return 0

    def flush(self, path: str, fh: int) -> int:
        return 0

    def release(self, path: str, fh: int) -> int:
        del self.files[fh]
        self.direct.discard(fh)
        os.close(fh)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self._real + path, mode)
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(self._real + path)
        return 0

    def unlink(self, path: str) -> int:
        os.unlink(self._real + path)
        return 0

    def rename(self, old: str, new: str, flags: int = 0) -> int:
        if "no_replace" in self._options and os.path.lexists(self._real + new):
            raise fuse.FuseOSError(errno.EEXIST)
        os.rename(self._real + old, self._real + new)
        return 0

    def symlink(self, target: str, source: str) -> int:
        os.symlink(source, self._real + target)
        return 0

    def link(self, target: str, source: str) -> int:
        os.link(self._real + source, self._real + target)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        if "fixed_mode" in self._options:
            raise fuse.FuseOSError(errno.EPERM)
        os.chmod(self._real + path, mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        os.chown(self._real + path, uid, gid)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        os.utime(self._real + path, ns=times)
        return 0

    def fallocate(self, path: str, mode: int, offset: int, length: int, fh: int) -> int:
        return libc.fallocate(fh, mode, offset, length)

    def flock(self, path: str, fh: int, operation: int) -> int:
        fcntl.flock(fh, operation)
        return 0


def guarded(name: str, method: Any) -> Any:
    """The operation of that name, which fails where it is to."""

    def call(self: Folder, path: str, *args: Any) -> Any:
        if name == "flush" and not self.files.get(args[0]):
            return 0
        to_write = name == "open" and args[0] & os.O_ACCMODE != os.O_RDONLY
        fault = self.faults.met((name, "open_to_write") if to_write else (name,), path or "")
        if fault is not None and fault.delay:
            time.sleep(fault.delay)
        if fault is not None and fault.error:
            raise fuse.FuseOSError(getattr(errno, fault.error))
        # What is short past the page cache, the kernel itself answers with EIO.
        short = name == "write" and fault is not None and args[2] not in self.direct
        if short and fault is not None and fault.short:
            args = (args[0][: fault.short], *args[1:])
        return method(self, path, *args)

    return call


class Mount(fuse.FUSE):  # type: ignore[misc]
    """With the one operation of FUSE 3 that the library gets wrong."""

    def truncate_fuse_3(self, path: bytes | None, length: int, info: Any) -> int:
        """The library's own forgets the open file, which may have no name any more."""
        fh = info.contents.fh if info else None
        answer: int = self.operations.truncate(os.fsdecode(path or b""), length, fh)
        return answer


def main(real: str, mount: str, control: str, options: set[str]) -> None:
    """Mount it, and serve until it is unmounted or killed."""
    for option, name in (("no_punch", "fallocate"), ("no_flock", "flock")):
        if option in options:
            delattr(Folder, name)
    for name, method in list(vars(Folder).items()):
        if callable(method) and not name.startswith("_"):
            setattr(Folder, name, guarded(name, method))
    logging.disable()
    with contextlib.suppress(RuntimeError):  # it was asked to end
        # With hard_remove a file that is open can be removed, and its folder with it, as on a disk
        # of this machine.
        Mount(
            *(Folder(real, options, Faults(control)), mount),
            foreground=True,
            direct_io="direct_io" in options,
            hard_remove=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:4], set(sys.argv[4:]))
