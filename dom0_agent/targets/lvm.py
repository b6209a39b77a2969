# SPDX-License-Identifier: GPL-2.0-or-later
"""Thin volumes: new contents in a snapshot of the volume, which LVM swaps with it in one step."""

import fcntl
import os
import threading
from pathlib import Path

from common.durable import closing_fd
from common.image_writer import ImageWriter
from common.override import override
from dom0_agent.bitmap import Bitmap
from dom0_agent.kernel import ByteRange
from dom0_agent.log import WARNING, log
from dom0_agent.sources import lvm
from dom0_agent.sources.lvm_thin import LvmThinSource
from dom0_agent.targets.interface import Replacement
from wire.status import Code, Refused

_CHECK_SPACE = 64 << 20
"""Bytes written between two looks at the pool's space."""
_BLKDISCARD, _BLKZEROOUT = 0x1277, 0x127F  # Linux, include/uapi/linux/fs.h


class LvmReplacement(Replacement):
    """New contents in a snapshot of the volume, merged into it at the end: LVM swaps the two in one
    step.

    The snapshot is emptied, unless it is to begin as the volume. A volume that is not there any
    more is made as a new one, and renamed at the end.
    """

    ordered = False

    def __init__(self, source: LvmThinSource, size: int, base: int | None = None) -> None:
        self._pool, self._name, self._beside = source.pool, source.lv, source.unfinished
        pool, name, beside = self._pool, self._name, self._beside
        pool.require_data()
        pool.require_metadata()
        self._unchecked, self._block = 0, pool.itself().block
        self._fresh: FreshBlocks | None = None
        old = pool.find(name)
        if old is not None and old.merging:
            raise self._not_yet()
        if old is not None and old.in_use:
            raise self._in_use()
        self._old = old
        try:
            unzeroed = self._make(size, source, base)
            self._file = ImageWriter(lvm.device_path(pool.group, beside), None)
            if unzeroed:
                self._fresh = FreshBlocks(self._file.fd, self._block)
        except BaseException as error:
            source.drop_unfinished()
            if isinstance(error, OSError):
                raise self._cannot_write(error) from None
            raise

    def _in_use(self) -> Refused:
        where = f"{self._pool.group}/{self._name}"
        return Refused(Code.BUSY, f"{where} is in use; shut down the qube or unmount it first")

    def _not_yet(self) -> Refused:
        where = f"{self._pool.group}/{self._name}"
        return Refused(
            Code.BUSY,
            f"{where} was opened while it was restored: close it, then lvchange -an {where}, which"
            " puts the new contents in its place; what is written to it until then is lost",
        )

    def _cannot_write(self, error: OSError) -> Refused:
        where = f"{self._pool.group}/{self._name}"
        return Refused(Code.SOURCE_FAILED, f"cannot write beside {where}: {error.strerror}")

    def _make(self, size: int, source: LvmThinSource, base: int | None) -> bool:
        """Whether the new contents have no blocks, and are in a pool that does not zero those that
        they get.
        """
        pool, whole = self._pool, self._pool.itself()
        named = ("--addtag", lvm.TAG, "--name", self._beside)
        if self._old is None:
            pool.change("lvcreate", "--virtualsize", f"{size}b", "--thin", pool.title, *named)
            return not whole.zeroes
        origin, old = f"{pool.group}/{self._name}", self._old
        pool.change("lvcreate", "--snapshot", "--setactivationskip", "n", *named, origin)
        given_back = whole.discards != "ignore"
        if base is not None and size == old.size and whole.zeroes and given_back:
            # Where new blocks are not zeroed, or none are given back, parts of a block that are
            # not written hold what they held elsewhere.
            self.changed = self._as_it_is(source, base)
            if self.changed is not None:
                return False
        if -(-size // old.extent) * old.extent != old.size:
            self._resize(size)
        # with what a volume that once shrank has beyond its end
        device = lvm.device_path(pool.group, self._beside)
        self._empty(device, self._block if given_back else 0)
        return given_back and not whole.zeroes

    def _as_it_is(self, source: LvmThinSource, base: int) -> Bitmap | None:
        try:
            return source.differing(base, self._beside)
        except Refused as error:
            log(WARNING, f"{source.name}: cannot tell what changed, so all is restored: {error}")
            return None

    def _empty(self, device: Path, block: int) -> None:
        """Make a device read as zeros: by giving its blocks of so many bytes back, or where the
        pool does not do that (0) by writing zeros, which takes space.
        """
        with closing_fd(os.open(device, os.O_RDWR | os.O_CLOEXEC | os.O_EXCL)) as fd:
            size = os.lseek(fd, 0, os.SEEK_END)
            # A pool gives back whole blocks: of a last one in part it would keep what is there.
            whole = size - size % block if block else 0
            _ioctl(fd, _BLKDISCARD, 0, whole)
            for at in range(whole, size, _CHECK_SPACE):
                self._pool.require_data(self._pool.used_percent())
                _ioctl(fd, _BLKZEROOUT, at, min(at + _CHECK_SPACE, size))

    def _resize(self, size: int) -> None:
        """Nothing of it is a file system that anybody uses; LVM from 2.03.17 on wants to hear
        so, earlier ones take no such option."""
        words = ("--size", f"{size}b", f"{self._pool.group}/{self._beside}")
        try:
            self._pool.change("lvresize", "--force", *words)
        except Refused as first:
            try:
                self._pool.change("lvresize", "--force", "--fs", "ignore", *words)
            except Refused:
                raise first from None

    @override
    def write(self, offset: int, parts: list[bytes]) -> None:
        """Looks at the pool's space every now and then: a full pool would harm
        every volume in it.
        """
        length = sum(len(part) for part in parts)
        self._unchecked += length
        if self._unchecked >= _CHECK_SPACE:
            self._unchecked = 0
            self._pool.require_data(self._pool.used_percent())
        try:
            if self._fresh is not None:
                self._unchecked += self._fresh.prepare(offset, offset + length)
            self._file.write(offset, parts)
        except OSError as error:
            raise self._cannot_write(error) from None

    @override
    def read(self, offset: int, length: int) -> memoryview:
        return self._file.read(offset, length)

    @override
    def clear(self, start: int, end: int) -> None:
        """A pool gives back whole blocks; in the others zeros are written."""
        first, last = -(-start // self._block) * self._block, end // self._block * self._block
        try:
            if first < last:
                _ioctl(self._file.fd, _BLKDISCARD, first, last)
                _ioctl(self._file.fd, _BLKZEROOUT, start, first)
                _ioctl(self._file.fd, _BLKZEROOUT, last, end)
            else:
                _ioctl(self._file.fd, _BLKZEROOUT, start, end)
        except OSError as error:
            raise self._cannot_write(error) from None

    @override
    def commit(self) -> None:
        try:
            self._file.sync()
        finally:
            self._file.close()
        full = f"{self._pool.group}/{self._beside}"
        # LVM would put the merge off until the volume is activated next, and that cannot be undone.
        if self._old is not None and self._as_it_is_now().in_use:
            self._pool.remove(self._beside)
            raise self._in_use()
        self._pool.change("lvchange", "--deltag", lvm.TAG, full)
        if self._old is None:
            self._pool.change("lvrename", self._pool.group, self._beside, self._name)
            return
        self._pool.change("lvconvert", "--merge", full)
        if self._as_it_is_now().merging:
            raise self._not_yet()

    def _as_it_is_now(self) -> lvm.LogicalVolume:
        self._pool.report.outdated = True
        named = (one for one in self._pool.named(self._name) if one.name == self._name)
        found = next(named, None)
        if found is None:
            raise Refused(
                Code.SOURCE_FAILED, f"{self._pool.group}/{self._name} was removed meanwhile"
            )
        return found

    @override
    def discard(self) -> None:
        self._file.close()
        self._pool.remove(self._beside)


class FreshBlocks:
    """The blocks of a thin volume that has none, in a pool that does not zero new ones.

    What was never written reads as zeros. But of a block that is written in part the rest is what
    it held elsewhere: such a block is zeroed before.
    """

    def __init__(self, fd: int, block: int) -> None:
        self._fd, self._block, self._size = fd, block, os.lseek(fd, 0, os.SEEK_END)
        self._zeroed = bytearray(-(-self._size // block) // 8 + 1)
        self._turn = threading.Lock()

    def prepare(self, start: int, end: int) -> int:
        """Zero what holds the bytes from ``start`` up to ``end``, which are written next, and more;
        how many bytes were. May be called from several threads.
        """
        parts = {start // self._block} if start % self._block else set()
        if end % self._block and end < self._size:
            parts.add(end // self._block)
        with self._turn:  # whoever writes to the same block waits until it is zeroed
            return sum(map(self._zero, sorted(parts)))

    def _zero(self, number: int) -> int:
        if self._zeroed[number // 8] >> number % 8 & 1:
            return 0
        start = number * self._block
        end = min(start + self._block, self._size)
        _ioctl(self._fd, _BLKZEROOUT, start, end)
        self._zeroed[number // 8] |= 1 << number % 8
        return end - start


def _ioctl(fd: int, number: int, start: int, end: int) -> None:
    if start < end:
        fcntl.ioctl(fd, number, ByteRange.row().pack(start, end - start))
