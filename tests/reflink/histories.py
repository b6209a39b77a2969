# SPDX-License-Identifier: GPL-2.0-or-later
"""Random histories of an image on Btrfs or XFS, against the bytes.

For hours: ``python -m tests.reflink.histories FOLDER SECONDS SEED``, with an empty folder on such a
file system. All that a qube, an administrator, a deduplication daemon or the file system may do to
it: write, map, punch, reflink at shifted offsets from other files, deduplicate, compress,
defragment, balance, take snapshots of its subvolume.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import random
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dom0_agent.config import Pool, Volume
from dom0_agent.sources import snapshot_name
from dom0_agent.sources.reflink import ReflinkSource
from tests.kit import GRAIN, truly_changed
from wire.status import Refused

SIZE = 3 << 20
BLOCK = 4096
FICLONERANGE, FIDEDUPERANGE = 0x4020940D, 0xC0189436
KEEP_SIZE, PUNCH, COLLAPSE, ZERO, INSERT = 1, 3, 8, 0x10, 0x20
NOT_NOW = (errno.EINVAL, errno.EFBIG, errno.EAGAIN, errno.EOPNOTSUPP, errno.ETXTBSY, errno.ENOSPC)
LIBC = ctypes.CDLL(None, use_errno=True)


def fallocate(fd: int, mode: int, at: int, length: int) -> None:
    LIBC.fallocate(fd, mode, ctypes.c_longlong(at), ctypes.c_longlong(length))


def clone_range(fd: int, source: int, at: int, length: int, to: int) -> None:
    fcntl.ioctl(fd, FICLONERANGE, struct.pack("=qQQQ", source, at, length, to))


def dedupe(fd: int, to: int, source: int, at: int, length: int) -> int:
    """What a deduplication daemon does; 0 when the two were equal and are one now."""
    buffer = bytearray(struct.pack("=QQHHI", at, length, 1, 0, 0))
    buffer += struct.pack("=qQQiI", fd, to, 0, 0, 0)
    fcntl.ioctl(source, FIDEDUPERANGE, buffer)
    return int(struct.unpack_from("=qQQiI", buffer, 24)[3])


def command(*words: object) -> None:
    subprocess.run([str(word) for word in words], capture_output=True, check=False)


class History:
    """An image, what was done to it, and what the source said of it. ``wrong`` lists every lie."""

    def __init__(self, folder: Path, seed: int, rest: float = 0) -> None:
        """``rest``: seconds for which nothing is written before it is asked whether anything was,
        the time of change being another one than at the snapshot.
        """
        self.rest = rest
        self.folder, self.rng = folder, random.Random(seed)
        self.image, self.other = folder / "work.img", folder / "other.img"
        kind = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True)
        self.xfs = kind.stdout.strip() == "xfs"
        self.source = ReflinkSource(
            Volume("work", "private", Pool("p", "reflink", folder, data_limit=100), "work.img")
        )
        self.number, self.older = 1, list[Path]()
        self.wrong: list[str] = []
        self.sessions = self.unchanged = 0
        for path in (self.image, self.other):
            path.touch()
            if not self.xfs and self.rng.randrange(4) == 0:
                command("chattr", "+C", path)
            with open(path, "r+b") as file:
                file.truncate(SIZE)
                for _ in range(20):
                    os.pwrite(file.fileno(), self.some(50_000), self.rng.randrange(SIZE - 50_000))
                os.pwrite(file.fileno(), b"".join(bytes([65 + i]) * GRAIN for i in range(2)), 0)
        self.source.snapshot(1 << 32)
        self.base = self.path(1).read_bytes()

    def path(self, number: int) -> Path:
        return self.folder / ".sparsebak/work/private" / f"{snapshot_name(number << 32)}.snap"

    def some(self, length: int) -> bytes:
        kind = self.rng.randrange(6)
        if kind == 0:
            return bytes(length)
        if kind == 1:
            return (b"again %d " % self.rng.randrange(3) * (length // 8 + 1))[:length]
        if kind == 2:
            return random.Random(self.rng.randrange(2)).randbytes(length)
        if kind == 3:
            return bytes([self.rng.randrange(256)]) * length
        return self.rng.randbytes(length)

    def disturb(self, fd: int) -> None:
        """One of the things that may happen."""
        size = os.fstat(fd).st_size
        at = self.rng.randrange(max(1, size))
        lengths = [1, 100, 4096, 8192, 65536, 200_000, self.rng.randrange(1, 300_000)]
        length = min(size - at, self.rng.choice(lengths)) or 1
        ways: list[tuple[int, Callable[[int, int, int, int], None]]] = [
            (6, self._write),
            (3, self._direct),
            (3, self._mapped),
            (4, self._allocate),
            (2, self._resize),
            (5, self._clone),
            (3, self._dedupe),
            (2, self._rearrange),
            (2, self._elsewhere),
        ]
        way = self.rng.choices([w for _, w in ways], [n for n, _ in ways])[0]
        try:
            way(fd, size, at, length)
            if self.rng.randrange(3) == 0:
                os.fsync(fd)
        except OSError as error:
            if error.errno not in NOT_NOW:
                raise

    def _write(self, fd: int, size: int, at: int, length: int) -> None:
        same = self.rng.randrange(4) == 0
        os.pwrite(fd, os.pread(fd, length, at) if same else self.some(length), at)

    def _direct(self, fd: int, size: int, at: int, length: int) -> None:
        start, length = at // BLOCK * BLOCK, max(BLOCK, min(length // BLOCK * BLOCK, 1 << 18))
        if start + length > size:
            return
        direct = os.open(self.image, os.O_RDWR | os.O_DIRECT)
        with mmap.mmap(-1, length) as buffer:
            buffer[:] = self.some(length)
            os.pwritev(direct, [buffer], start)
        os.close(direct)

    def _mapped(self, fd: int, size: int, at: int, length: int) -> None:
        length = min(length, size - at)
        with mmap.mmap(fd, 0) as mapped:
            mapped[at : at + length] = self.some(length)

    def _allocate(self, fd: int, size: int, at: int, length: int) -> None:
        modes = [PUNCH, PUNCH, ZERO, ZERO | KEEP_SIZE, 0, KEEP_SIZE]
        if self.xfs:
            modes += [COLLAPSE, INSERT]
        mode = self.rng.choice(modes)
        if mode in (COLLAPSE, INSERT):
            at, length = at // BLOCK * BLOCK, self.rng.randrange(1, 20) * BLOCK
            if size < 3 * length or size + length > 2 * SIZE:
                return
        fallocate(fd, mode, at, length)
        if mode in (0, KEEP_SIZE) and self.rng.randrange(2):
            os.pwrite(fd, self.some(min(length, 20_000)), at)

    def _resize(self, fd: int, size: int, at: int, length: int) -> None:
        if self.rng.randrange(2):
            os.ftruncate(fd, max(1, size - self.rng.randrange(min(size, 400_000) + 1)))
        elif size < 2 * SIZE:
            os.ftruncate(fd, size + self.rng.randrange(200_000))

    def _anywhere(self) -> Path:
        return self.rng.choice([self.image, self.other, self.path(self.number), *self.older])

    def _clone(self, fd: int, size: int, at: int, length: int) -> None:
        source = os.open(self._anywhere(), os.O_RDONLY)
        blocks = max(1, os.fstat(source).st_size // BLOCK)
        start, count = self.rng.randrange(blocks), self.rng.randrange(1, 40)
        to = self.rng.randrange(size // BLOCK + 1)
        if self.rng.randrange(3) == 0:  # another part of one compressed extent
            group = self.rng.randrange(max(1, blocks // 32)) * 32
            start, count = group + self.rng.randrange(1, 31), self.rng.choice([1, 8, 16])
            to = group + self.rng.randrange(31)
        elif self.rng.randrange(2) == 0:
            # One or the other part of an extent that a third file has whole.
            os.close(source)
            source = os.open(self.other, os.O_RDONLY)
            start, count, to = self.rng.randrange(2) * 16, 16, self.rng.randrange(2) * 16
        elif self.rng.randrange(3) == 0:  # to the same place
            to = min(start, to)
        try:
            clone_range(fd, source, start * BLOCK, count * BLOCK, to * BLOCK)
        finally:
            os.close(source)

    def _dedupe(self, fd: int, size: int, at: int, length: int) -> None:
        """Two places are made equal, then one."""
        path, length = self._anywhere(), self.rng.randrange(1, 33) * BLOCK
        source = os.open(path, os.O_RDONLY)
        try:
            end = min(size, os.fstat(source).st_size) - length
            if end < BLOCK:
                return
            a, b = (self.rng.randrange(end) // BLOCK * BLOCK for _ in range(2))
            if path == self.image and abs(a - b) < length:
                return
            os.pwrite(fd, os.pread(source, length, a), b)
            os.fsync(fd)
            dedupe(fd, b, source, a, length)
        finally:
            os.close(source)

    def _rearrange(self, fd: int, size: int, at: int, length: int) -> None:
        """What moves bytes about without changing them, or changes how they will be kept."""
        path = self.rng.choice([self.image, self.other, self.path(self.number)])
        if self.xfs:
            command("/usr/sbin/xfs_fsr", path)
            return
        how = self.rng.randrange(8)
        if how == 0:
            command("btrfs", "balance", "start", "-d", "--force", self.folder)
        elif how == 1:
            copy = self.folder / f"snapshot{self.rng.randrange(2)}"
            with suppress(OSError):
                command("btrfs", "subvolume", "delete", copy)
            command("btrfs", "subvolume", "snapshot", self.folder, copy)
        elif how < 5:
            more = self.rng.choice([[], ["-czstd"], ["-clzo"], ["-t", "64K"]])
            command("btrfs", "filesystem", "defragment", "-f", *more, path)
        else:
            kind = self.rng.choice(["zstd", "lzo", "none", ""])
            command("btrfs", "property", "set", self.image, "compression", kind)

    def _elsewhere(self, fd: int, size: int, at: int, length: int) -> None:
        """Another file, from which something may come here later."""
        with open(self.other, "r+b") as file:
            os.pwrite(file.fileno(), self.some(length), at + 2 * GRAIN)

    def session(self) -> None:
        """Some of that, then a look without a snapshot, then a snapshot and its delta, with writes
        in the middle of it.
        """
        self.sessions += 1
        fd = os.open(self.image, os.O_RDWR)
        for _ in range(self.rng.choice([0, 0, 1, 1, 2, 5, 12])):
            self.disturb(fd)
        if os.fstat(fd).st_size < 20_000:
            os.ftruncate(fd, SIZE)
        if self.rest:
            os.utime(fd)
            time.sleep(self.rest)
        if self.source.unchanged(self.number << 32):
            self.unchanged += 1
            if self.image.read_bytes() != self.base:
                self.wrong.append(f"session {self.sessions}: called unchanged")
        stop = threading.Event()
        writer = threading.Thread(target=self._scribble, args=(fd, stop))
        if self.rng.randrange(4) == 0:
            writer.start()
        new = self.number + 1
        try:
            self.source.snapshot(new << 32)
            ranges = list(self.source.delta(self.number << 32, new << 32))
        except Refused:  # no room
            self.source.drop(new << 32)
            return
        finally:
            stop.set()
            if writer.ident:
                writer.join()
            os.close(fd)
        self._judge(new, ranges)

    def _scribble(self, fd: int, stop: threading.Event) -> None:
        rng = random.Random(self.sessions)
        while not stop.is_set():
            with suppress(OSError):
                os.pwrite(fd, rng.randbytes(rng.randrange(1, 9000)), rng.randrange(1 << 20))

    def _judge(self, new: int, ranges: list[tuple[int, int]]) -> None:
        now = self.path(new).read_bytes()
        named = {at for a, b in ranges for at in range(a // GRAIN, (b - 1) // GRAIN + 1)}
        within = min(len(self.base), len(now))
        missed = truly_changed(self.base[:within], now[:within]) - named
        if missed:
            self.wrong.append(f"session {self.sessions}: missed {sorted(missed)[:5]}")
        fd, at = self.source.open(new << 32), 0
        for start, end in [*self.source.data_ranges(fd, 0, len(now)), (len(now), 0)]:
            if now[at:start].strip(b"\0"):
                self.wrong.append(f"session {self.sessions}: data in a hole at {at}")
            at = end
        os.close(fd)
        old = self.path(self.number)
        if self.rng.randrange(4) == 0 and len(self.older) < 3:  # as a pending session keeps one
            self.older.append(old)
        else:
            self.source.drop(self.number << 32)
        if self.older and self.rng.randrange(5) == 0:
            self.older.pop(0).unlink()
        self.number, self.base = new, now


def main(folder: str, seconds: str, seed: str) -> int:
    """Run one history for so long; say what it found."""
    history, end = History(Path(folder), int(seed)), time.monotonic() + float(seconds)
    while time.monotonic() < end and not history.wrong:
        history.session()
    print(f"seed {seed}: {history.sessions} sessions, {history.unchanged} times 'unchanged'")
    print("\n".join(history.wrong) or "nothing was missed")
    return bool(history.wrong)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
