# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks whose every write and flush is kept in order, and what they hold after a power cut.

A FUSE folder of disk images below loop devices: what dm-log-writes does, where there is no
device-mapper. The server is a process of its own: ``python -m tests.powercut.disks MOUNT LOG
IMAGE...``; a line written to ``MOUNT/mark`` stands in the log between the writes before it and
those after it.
"""

import contextlib
import errno
import os
import random
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE

WRITE, FLUSH, MARK = 0, 1, 2
SECTOR = 512
"""Bytes that a disk writes whole or not at all."""
_HEAD = struct.Struct("<BBQI")


@dataclass(frozen=True)
class Record:
    """One write, flush or mark. ``disk`` counts the images from 0."""

    kind: int
    disk: int
    offset: int
    data: bytes


def records(log: Path) -> list[Record]:
    """All that was recorded."""
    raw, at, found = memoryview(log.read_bytes()), 0, []
    while at < len(raw):
        kind, disk, offset, length = _HEAD.unpack_from(raw, at)
        at += _HEAD.size
        found.append(Record(kind, disk, offset, bytes(raw[at : at + length])))
        at += length
    return found


class Recorder:
    """The folder of disks, mounted. The images are changed in place."""

    def __init__(self, mount: Path, log: Path, images: list[Path]) -> None:
        self._mount = mount
        mount.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.powercut.disks", mount, log, *images],
            cwd=Path(__file__).parent.parent.parent,
        )
        deadline = time.monotonic() + PATIENCE
        while not os.path.ismount(mount):
            assert self._process.poll() is None and time.monotonic() < deadline, "not mounted"
            time.sleep(0.01)

    def path(self, disk: int) -> Path:
        """A disk, for a loop device."""
        return self._mount / str(disk)

    def mark(self, text: str) -> None:
        """Write a mark into the log."""
        (self._mount / "mark").write_text(text)

    def close(self) -> None:
        """Unmount; the log is whole then."""
        subprocess.run(["fusermount3", "-u", self._mount], check=True)
        self._process.wait(PATIENCE)


class Replay:
    """Images as they are after a cut, made from copies of those at the beginning.

    A disk holds all that was written before the last flush that was answered, and of what was
    written since any part: each write whole, torn between sectors, or not at all.
    """

    def __init__(self, log: list[Record], images: list[Path], folder: Path) -> None:
        self._log, self._at = log, 0
        self._durable = [folder / f"durable{number}" for number in range(len(images))]
        self.cut = [folder / f"cut{number}" for number in range(len(images))]
        self._waiting: list[list[Record]] = [[] for _ in images]
        for image, durable in zip(images, self._durable, strict=True):
            _copy(image, durable)

    def to(self, position: int, rng: random.Random) -> str:
        """Make the images after a cut before record ``position``, which only grows; tell how much
        was lost.
        """
        while self._at < position:
            record = self._log[self._at]
            self._at += 1
            if record.kind == WRITE:
                self._waiting[record.disk].append(record)
            elif record.kind == FLUSH:
                _apply(self._durable[record.disk], self._waiting[record.disk])
                self._waiting[record.disk] = []
        share = rng.choice((0.0, 0.15, 0.5, 0.5, 0.85, 1.0))
        for durable, cut, waiting in zip(self._durable, self.cut, self._waiting, strict=True):
            _copy(durable, cut)
            _apply(cut, _survivors(waiting, share, rng))
        return f"{share:.0%} of {[len(waiting) for waiting in self._waiting]} writes are there"


def _survivors(waiting: list[Record], share: float, rng: random.Random) -> Iterator[Record]:
    for record in waiting:
        if rng.random() >= share:
            continue
        data = record.data
        if share < 1 and rng.random() < 0.05:
            data = data[: rng.randrange(0, len(data) + 1, SECTOR)]
        yield Record(WRITE, record.disk, record.offset, data)


def _apply(image: Path, writes: Any) -> None:
    with open(image, "r+b", buffering=0) as file:
        for record in writes:
            file.seek(record.offset)
            file.write(record.data)


def _copy(image: Path, to: Path) -> None:
    subprocess.run(["cp", "--sparse=always", image, to], check=True)


def _serve(mount: str, log_name: str, images: list[str]) -> None:
    from backup_vm.jobs.libfuse import mfusepy as fuse

    descriptors = [os.open(image, os.O_RDWR) for image in images]
    log = open(log_name, "wb")

    class Disks(fuse.Operations):  # type: ignore[misc]
        use_ns = True

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
            size = 0 if path == "/mark" else os.fstat(self._disk(path)[1]).st_size
            return {"st_mode": stat.S_IFREG | 0o644, "st_nlink": 1, "st_size": size}

        def _disk(self, path: str) -> tuple[int, int]:
            try:
                return int(path[1:]), descriptors[int(path[1:])]
            except (ValueError, IndexError):
                raise fuse.FuseOSError(errno.ENOENT) from None

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", "mark", *map(str, range(len(descriptors)))]

        def open(self, path: str, flags: int) -> int:
            return 0

        def truncate(self, path: str, length: int, fh: int | None = None) -> int:
            return 0

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(self._disk(path)[1], size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            if path == "/mark":
                log.write(_HEAD.pack(MARK, 0, 0, len(data)) + data)
                return len(data)
            number, descriptor = self._disk(path)
            written = os.pwrite(descriptor, data, offset)
            log.write(_HEAD.pack(WRITE, number, offset, written) + data[:written])
            return written

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            if path != "/mark":
                log.write(_HEAD.pack(FLUSH, self._disk(path)[0], 0, 0))
            return 0

    # One thread: what is in the log in an order was done in it.
    with contextlib.suppress(RuntimeError):
        fuse.FUSE(Disks(), mount, foreground=True, nothreads=True)
    log.close()


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], sys.argv[3:])
