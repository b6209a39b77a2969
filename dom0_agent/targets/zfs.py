# SPDX-License-Identifier: GPL-2.0-or-later
"""ZFS volumes: new contents in a clone of the volume, which the volume then receives.

``zfs receive`` takes effect as a whole or not at all, and leaves the volume its name, properties
and snapshots. The old contents stay as the snapshot ``VOLUME@before-restore``.
"""

import fcntl
import os
import subprocess
import time

from common.durable import closing_fd
from common.image_writer import ImageWriter
from common.override import override
from dom0_agent.config import ZVOLS
from dom0_agent.kernel import ByteRange
from dom0_agent.sources import lvm
from dom0_agent.sources.zfs import OURS, ZfsSource
from dom0_agent.targets.interface import Replacement
from wire.status import Code, Refused

KEPT = "before-restore"
"""The snapshot that has what a volume was before it was restored last."""
_NEW, _DONE = "new", "done"
"""In place of a snapshot's number: what is written to, and what the volume has received."""
_CHECK_SPACE = 64 << 20
"""Bytes written between two looks at the pool's space."""
_BLKDISCARD = 0x1277  # Linux, include/uapi/linux/fs.h
_TRIES, _PAUSE = 20, 0.1


def clean(source: ZfsSource) -> None:
    """Remove what an interrupted restore left. One that the volume has received is complete."""
    pool, before = source.pool, f"{source.dataset}@{OURS}{_NEW}"
    done = f"{source.dataset}@{OURS}{_DONE}"
    if pool.find(done) is not None and pool.find(before) is not None:
        kept = f"{source.dataset}@{KEPT}"
        if pool.find(kept) is not None:
            pool.remove(kept)
        if pool.find(kept) is not None:  # somebody has a clone of it, or holds it
            kept += f"-{int(time.time())}"
        pool.change("zfs", "rename", before, kept)
    for name in (source.beside(_NEW), before, done):
        if pool.find(name) is not None:
            pool.remove(name)


class ZfsReplacement(Replacement):
    """See Replacement. A volume that is not there any more is made as a new one, and renamed at the
    end.
    """

    ordered = False

    def __init__(self, source: ZfsSource, size: int) -> None:
        self._source, self._pool, self._new = source, source.pool, source.beside(_NEW)
        self._before = f"{source.dataset}@{OURS}{_NEW}"
        self._exists, self._unchecked = source.pool.find(source.dataset) is not None, 0
        self._pool.require_room()
        self._require_unused()
        try:
            self._make(size)
            with closing_fd(source.device(self._new, os.O_RDWR | os.O_EXCL)) as fd:
                whole = os.lseek(fd, 0, os.SEEK_END)
                fcntl.ioctl(fd, _BLKDISCARD, ByteRange.row().pack(0, whole))
            self._file = ImageWriter(ZVOLS / self._new, None)
        except BaseException as error:
            clean(source)
            if isinstance(error, OSError):
                raise Refused(
                    Code.SOURCE_FAILED, f"cannot write to {self._new}: {error.strerror}"
                ) from None
            raise

    def _require_unused(self) -> None:
        """Refused when anybody has the volume for themselves: mounted, or attached to a qube."""
        if not self._exists:
            return
        for turn in range(_TRIES):  # udev looks at devices that appear, or were written to
            try:
                os.close(self._source.device(self._source.dataset, os.O_RDONLY | os.O_EXCL))
                return
            except OSError:
                if turn == _TRIES - 1:
                    raise Refused(
                        Code.BUSY,
                        f"{self._source.dataset} is in use; shut down the qube or unmount it first",
                    ) from None
                time.sleep(_PAUSE)

    def _make(self, size: int) -> None:
        change, found = self._pool.change, self._pool.find(self._source.dataset)
        options = ("-o", "volmode=dev", "-o", "com.sun:auto-snapshot=false")
        if found is None:
            rounded = -(-size // (1 << 20)) * (1 << 20)
            change("zfs", "create", "-s", *options, "-V", str(rounded), self._new)
            return
        change("zfs", "snapshot", self._before)
        change("zfs", "clone", *options, self._before, self._new)
        words = ("zfs", "get", "-Hp", "-o", "value", "volblocksize", self._source.dataset)
        block = int(lvm.run(*words))
        rounded = -(-size // block) * block
        if rounded != found.size:
            change("zfs", "set", f"volsize={rounded}", self._new)

    @override
    def write(self, offset: int, parts: list[bytes]) -> None:
        """Looks at the pool's space every now and then: a full pool would harm every volume in
        it.
        """
        self._unchecked += sum(len(part) for part in parts)
        if self._unchecked >= _CHECK_SPACE:
            self._unchecked = 0
            self._pool.forget()
            self._pool.require_room()
        try:
            self._file.write(offset, parts)
        except OSError as error:
            raise Refused(
                Code.SOURCE_FAILED, f"cannot write to {self._new}: {error.strerror}"
            ) from None

    @override
    def commit(self) -> None:
        try:
            self._file.sync()
        finally:
            self._file.close()
        if not self._exists:
            for name in ("volmode", "com.sun:auto-snapshot"):
                self._pool.change("zfs", "inherit", name, self._new)
            self._pool.change("zfs", "rename", self._new, self._source.dataset)
            return
        try:
            self._require_unused()
            done = f"{self._new}@{OURS}{_DONE}"
            self._pool.change("zfs", "snapshot", done)
            self._receive(done)
        finally:
            self._pool.forget()
            clean(self._source)

    def _receive(self, done: str) -> None:
        """The one step: before it the volume is what it was, after it what was restored. Refused by
        ZFS if anybody wrote to the volume since.
        """
        target, environ = f"{self._source.dataset}@{OURS}{_DONE}", lvm.environment()
        with subprocess.Popen(
            ["zfs", "send", "-L", "-i", self._before, done],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environ,
        ) as sending:
            received = subprocess.run(
                ["zfs", "receive", target],
                stdin=sending.stdout,
                capture_output=True,
                text=True,
                errors="replace",
                env=environ,
                check=False,
            )
            assert sending.stdout is not None  # noqa: S101  # for mypy
            sending.stdout.close()
        if received.returncode or sending.returncode:
            words = received.stderr.strip() or "zfs send failed"
            raise Refused(
                Code.SOURCE_FAILED, f"{self._source.dataset} is as it was: zfs receive: {words}"
            )

    @override
    def discard(self) -> None:
        self._file.close()
        clean(self._source)
