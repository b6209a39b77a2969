"""Source ``lvm_thin``: logical volumes in a thin pool. Deltas come from the pool's metadata;
nothing is read but that.

A snapshot is a read-only thin volume named ``vm-sparsebak+QUBE+VOLUME+NUMBER``: ``vm-`` because
dom0's udev scans no such volume, ``+`` because no qube's name has one; qubesd takes none of them
for its own. It is not even active, so that no device shows its contents, until it is read.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from common.durable import closing_fd
from common.image_writer import ImageWriter
from dom0_agent.changed_map import GRAIN, ChangedMap
from dom0_agent.config import Volume
from dom0_agent.kernel import ByteRange
from dom0_agent.sources import Range, lvm, snapshot_name, snapshot_number
from dom0_agent.sources.thin_pool import ThinPool
from wire.status import Code, Refused

_NEW = "new"
_JUST_READ = 16 << 20
"""Bytes below which reading zeros is cheaper than asking where they are."""
_CHECK_SPACE = 64 << 20
"""Bytes written between two looks at the pool's space."""
_BLKDISCARD, _BLKZEROOUT = 0x1277, 0x127F  # Linux, include/uapi/linux/fs.h


class LvmThinSource:
    """See Source."""

    def __init__(self, volume: Volume, pool: ThinPool) -> None:
        self.name, self.pool = volume.name, pool
        self._live_name, self._committed = volume.live, volume.vid
        self._prefix = f"vm-{lvm.TAG}+{volume.qube}+{volume.volume}+"
        self._opened: dict[int, int] = {}
        self._mapped: dict[int, ChangedMap] = {}

    def together(self) -> AbstractContextManager[None]:
        """See Source."""
        return self.pool.together()

    def require_room(self) -> None:
        """See Source."""
        self.pool.require_data()

    @property
    def lv(self) -> str:
        """Name of the logical volume that has the data now."""
        return (
            self._live_name
            if self._live_name and self.pool.find(self._live_name)
            else self._committed
        )

    def _live(self) -> lvm.LogicalVolume:
        found = self.pool.find(self.lv)
        if found is None:
            raise Refused(
                Code.SOURCE_FAILED,
                f"{self.name}: there is no volume {self.lv} in pool {self.pool.title}",
            )
        return found

    def live_size(self) -> int:
        """See Source."""
        return self._live().size

    def _lv(self, number: int) -> str:
        return self._prefix + snapshot_name(number)

    def _snapshot(self, number: int) -> lvm.LogicalVolume:
        found = self.pool.find(self._lv(number))
        if found is None:
            raise Refused(Code.SOURCE_FAILED, f"{self.name}: snapshot {self._lv(number)} is gone")
        return found

    def snapshots(self) -> set[int]:
        """See Source."""
        numbers = (
            snapshot_number(volume.name[len(self._prefix) :])
            for volume in self.pool.named(self._prefix)
        )
        return {number for number in numbers if number is not None}

    def snapshot(self, number: int) -> None:
        """See Source."""
        self._live()
        self.pool.require_metadata()
        name = self._lv(number)
        if len(lvm.device_name(self.pool.group, name)) > lvm.NAME_LIMIT:
            raise Refused(
                Code.SOURCE_FAILED,
                f"{self.name}: the name is too long for a snapshot in group {self.pool.group}",
            )
        try:
            self._create(name, "--permission", "r", "--setactivationskip", "y", "--activate", "n")
        except BaseException:
            if self.pool.find(name) is not None:
                self.pool.remove(name)
            raise

    def _create(self, name: str, *how: str) -> None:
        origin = f"{self.pool.group}/{self.lv}"
        self.pool.change(
            "lvcreate", "--snapshot", *how, "--addtag", lvm.TAG, "--name", name, origin
        )

    def unchanged(self, number: int) -> bool:
        """See Source. Asked of the pool's metadata, if nobody has the volume open: of one that is
        in use it is not likely.
        """
        live, base = self._live(), self._snapshot(number)
        return (
            not live.in_use
            and live.size == base.size
            and next(self.pool.delta(base, live), None) is None
        )

    def drop(self, number: int) -> None:
        """See Source."""
        if self.pool.find(self._lv(number)) is not None:
            self.pool.remove(self._lv(number))

    def size(self, number: int) -> int:
        """See Source."""
        return self._snapshot(number).size

    def open(self, number: int, direct: bool = False) -> int:
        """See Source."""
        snapshot = self._snapshot(number)
        if not snapshot.active:
            self.pool.change(
                "lvchange",
                "--activate",
                "y",
                "--ignoreactivationskip",
                f"{snapshot.group}/{snapshot.name}",
            )
        path = _device(snapshot.group, snapshot.name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if direct else 0))
        except OSError as error:
            raise Refused(Code.SOURCE_FAILED, f"{self.name}: {path}: {error.strerror}") from None
        if not stat.S_ISBLK(os.fstat(fd).st_mode):
            os.close(fd)
            raise Refused(Code.SOURCE_FAILED, f"{self.name}: {path} is not a block device")
        self._opened[fd] = number
        return fd

    def delta(self, old: int, new: int) -> Iterator[Range]:
        """See Source. After a shrink thin_delta names ranges past the end, too."""
        a, b = self._snapshot(old), self._snapshot(new)
        size = min(a.size, b.size)
        for start, end in self.pool.delta(a, b):
            if start < size:
                yield start, min(end, size)

    def data_ranges(self, fd: int, start: int, end: int) -> Iterator[Range]:
        """See Source. Asked of the pool's metadata, once; in a short range all counts as data."""
        if end - start <= _JUST_READ:
            if start < end:
                yield start, end
            return
        number = self._opened[fd]
        if number not in self._mapped:
            mapped = self._mapped[number] = ChangedMap()  # a pool's blocks are whole grains
            snapshot = self._snapshot(number)
            for first, last in self.pool.mapped(snapshot):  # also past the end, after a shrink
                mapped.mark(first, min(last, snapshot.size))
        for first, last in self._mapped[number].runs(1, -(-end // GRAIN)):
            if last * GRAIN > start:
                yield max(first * GRAIN, start), min(last * GRAIN, end)

    def replace(self, size: int) -> "LvmReplacement":
        """See Source."""
        self.pool.require_data()
        self.pool.require_metadata()
        return LvmReplacement(self.pool, self.lv, self._prefix + _NEW, size)

    def clean(self) -> None:
        """See Source."""
        if self.pool.find(self._prefix + _NEW) is not None:
            self.pool.remove(self._prefix + _NEW)

    def held(self) -> int:
        """See Source."""
        snapshots = self.pool.named(self._prefix)
        exclusive = self.pool.exclusive() if snapshots else {}
        return sum(exclusive.get(snapshot.thin_id or 0, 0) for snapshot in snapshots)


class LvmReplacement:
    """New contents in a snapshot of the volume, merged into it at the end: LVM swaps the two in one
    step.

    A volume that is not there any more is made as a new one, and renamed at the end.
    """

    ordered = False

    def __init__(self, pool: ThinPool, name: str, beside: str, size: int) -> None:
        self._pool, self._name, self._beside = pool, name, beside
        self._unchecked = 0
        old = pool.find(name)
        if old is not None and old.in_use:
            raise Refused(
                Code.BUSY, f"{pool.group}/{name} is in use; shut down the qube or unmount it first"
            )
        self._old = old
        try:
            self._make(size)
            self._file = ImageWriter(_device(pool.group, beside), None)
        except BaseException as error:
            if pool.find(beside) is not None:
                pool.remove(beside)
            if isinstance(error, OSError):
                raise Refused(
                    Code.SOURCE_FAILED, f"cannot write beside {pool.group}/{name}: {error.strerror}"
                ) from None
            raise

    def _make(self, size: int) -> None:
        pool, whole = self._pool, self._pool.itself()
        named = ("--addtag", lvm.TAG, "--name", self._beside)
        device, discard = (
            _device(pool.group, self._beside),
            whole.zeroes and whole.discards != "ignore",
        )
        if self._old is None:
            pool.change("lvcreate", "--virtualsize", f"{size}b", "--thin", pool.title, *named)
            if not whole.zeroes:
                _empty(device, discard)
            return
        origin, old = f"{pool.group}/{self._name}", self._old
        pool.change("lvcreate", "--snapshot", "--setactivationskip", "n", *named, origin)
        if -(-size // old.extent) * old.extent != old.size:
            self._resize(size)
        _empty(device, discard)  # with what a volume that once shrank has beyond its end

    def _resize(self, size: int) -> None:
        """Nothing of it is a file system that anybody uses; LVM from 2.03.17 on wants to be told
        so, earlier ones take no such option."""
        words = ("--size", f"{size}b", f"{self._pool.group}/{self._beside}")
        try:
            self._pool.change("lvresize", "--force", *words)
        except Refused as first:
            try:
                self._pool.change("lvresize", "--force", "--fs", "ignore", *words)
            except Refused:
                raise first from None

    def write(self, offset: int, parts: list[bytes]) -> None:
        """See Replacement. Looks at the pool's space every now and then: a full pool would harm
        every volume in it.
        """
        self._unchecked += sum(len(part) for part in parts)
        if self._unchecked >= _CHECK_SPACE:
            self._unchecked = 0
            self._pool.require_data(self._pool.used_percent())
        try:
            self._file.write(offset, parts)
        except OSError as error:
            raise Refused(
                Code.SOURCE_FAILED,
                f"cannot write beside {self._pool.group}/{self._name}: {error.strerror}",
            ) from None

    def commit(self) -> None:
        """See Replacement."""
        try:
            self._file.sync()
        finally:
            self._file.close()
        full = f"{self._pool.group}/{self._beside}"
        self._pool.change("lvchange", "--deltag", lvm.TAG, full)
        if self._old is None:
            self._pool.change("lvrename", self._pool.group, self._beside, self._name)
            return
        self._pool.change("lvconvert", "--merge", full)
        if self._pool.named(self._beside):  # opened since: LVM merges at the next activation
            text = (
                f"{self._pool.group}/{self._name} was opened meanwhile; the new contents are there"
                " once it was deactivated"
            )
            raise Refused(Code.BUSY, text)

    def discard(self) -> None:
        """See Replacement."""
        self._file.close()
        self._pool.remove(self._beside)


def _device(group: str, name: str) -> Path:
    return Path("/dev/mapper") / lvm.device_name(group, name)


def _empty(device: Path, discard: bool) -> None:
    """Make a device read as zeros: by giving its blocks back, or where the pool does not do that by
    writing zeros.
    """
    with closing_fd(os.open(device, os.O_RDWR | os.O_CLOEXEC | os.O_EXCL)) as fd:
        size = os.lseek(fd, 0, os.SEEK_END)
        fcntl.ioctl(fd, _BLKDISCARD if discard else _BLKZEROOUT, ByteRange.row().pack(0, size))
