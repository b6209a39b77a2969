# SPDX-License-Identifier: GPL-2.0-or-later
"""Source ``lvm_thin``: logical volumes in a thin pool. Deltas come from the pool's metadata;
nothing is read but that.

A snapshot is a read-only thin volume named ``vm-sparsebak+IDENTITY+VOLUME+NUMBER``: ``vm-`` because
dom0's udev scans no such volume, ``+`` because no identity has one; qubesd takes none of them
for its own. It is not even active, so that no device shows its contents, until it is read.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager

from common.override import override
from dom0_agent.bitmap import GRAIN, Bitmap
from dom0_agent.config import Volume
from dom0_agent.sources import Range, Source, lvm, snapshot_name, snapshot_numbers
from dom0_agent.sources.thin_pool import ThinPool
from wire.status import Code, Refused

_JUST_READ = 16 << 20
"""Bytes below which reading zeros is cheaper than asking where they are."""


class LvmThinSource(Source):
    """See Source."""

    def __init__(self, volume: Volume, pool: ThinPool) -> None:
        self.name, self.pool = volume.name, pool
        self._live_name, self._committed = volume.live, volume.vid
        self.prefix = f"vm-{lvm.TAG}+{volume.identity}+{volume.volume}+"
        self.unfinished = f"{self.prefix}new"
        """What a restore writes to, in the place of a snapshot's name."""
        self._opened: dict[int, int] = {}
        self._mapped: dict[int, Bitmap] = {}

    @override
    def together(self) -> AbstractContextManager[None]:
        return self.pool.together()

    @override
    def require_room(self) -> None:
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

    @override
    def live_size(self) -> int:
        return self._live().size

    def _lv(self, number: int) -> str:
        return self.prefix + snapshot_name(number)

    def _snapshot(self, number: int) -> lvm.LogicalVolume:
        found = self.pool.find(self._lv(number))
        if found is None:
            raise Refused(Code.SOURCE_FAILED, f"{self.name}: snapshot {self._lv(number)} is gone")
        return found

    @override
    def snapshots(self) -> set[int]:
        found = self.pool.named(self.prefix)
        return snapshot_numbers(volume.name.removeprefix(self.prefix) for volume in found)

    @override
    def snapshot(self, number: int) -> None:
        self._live()
        self.pool.require_metadata()
        name = self._lv(number)
        if len(lvm.device_name(self.pool.group, name)) > lvm.NAME_LIMIT:
            raise Refused(
                Code.SOURCE_FAILED,
                f"{self.name}: the name is too long for a snapshot in group {self.pool.group}",
            )
        live = self.lv
        try:
            try:
                self._create(name, live)
            except Refused:
                self.pool.report.fresh()
                if self.lv == live:
                    raise
                self._create(name, self.lv)  # the qube was started or shut down meanwhile
        except BaseException:
            if self.pool.find(name) is not None:
                self.pool.remove(name)
            raise

    def _create(self, name: str, origin: str) -> None:
        how = ("--permission", "r", "--setactivationskip", "y", "--activate", "n")
        named = ("--addtag", lvm.TAG, "--name", name)
        self.pool.change("lvcreate", "--snapshot", *how, *named, f"{self.pool.group}/{origin}")

    @override
    def unchanged(self, number: int) -> bool:
        """Asked of the pool's metadata, if nobody has the volume open: of one that is
        in use it is not likely.
        """
        live, base = self._live(), self._snapshot(number)
        return (
            not live.in_use
            and live.size == base.size
            and next(self.pool.delta(base, live), None) is None
        )

    def differing(self, old: int, name: str) -> Bitmap | None:
        """What a thin snapshot of the volume, which nobody writes to, may differ in from one of
        ours of the same size; None where that cannot be told.
        """
        base, clone = self.pool.find(self._lv(old)), self.pool.find(name)
        if base is None or clone is None or base.size != clone.size:
            return None
        changed = Bitmap()
        for start, end in self.pool.delta(base, clone):
            changed.mark(start, min(end, base.size))
        return changed

    @override
    def drop(self, number: int) -> None:
        if self.pool.find(self._lv(number)) is not None:
            self.pool.remove(self._lv(number))

    @override
    def drop_unfinished(self) -> None:
        if self.pool.find(self.unfinished) is not None:
            self.pool.remove(self.unfinished)

    @override
    def size(self, number: int) -> int:
        return self._snapshot(number).size

    @override
    def open(self, number: int, direct: bool = False) -> int:
        snapshot = self._snapshot(number)
        if not snapshot.active:
            self.pool.change(
                "lvchange",
                "--activate",
                "y",
                "--ignoreactivationskip",
                f"{snapshot.group}/{snapshot.name}",
            )
        path = lvm.device_path(snapshot.group, snapshot.name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if direct else 0))
        except OSError as error:
            raise Refused(Code.SOURCE_FAILED, f"{self.name}: {path}: {error.strerror}") from None
        if not stat.S_ISBLK(os.fstat(fd).st_mode):
            os.close(fd)
            raise Refused(Code.SOURCE_FAILED, f"{self.name}: {path} is not a block device")
        self._opened[fd] = number
        return fd

    @override
    def delta(self, old: int, new: int) -> Iterator[Range]:
        """After a shrink thin_delta names ranges past the end, too."""
        base, now = self._snapshot(old), self._snapshot(new)
        size = min(base.size, now.size)
        for start, end in self.pool.delta(base, now):
            if start < size:
                yield start, min(end, size)

    @override
    def data_ranges(self, fd: int, start: int, end: int) -> Iterator[Range]:
        """Asked of the pool's metadata, once; in a short range all counts as data."""
        if end - start <= _JUST_READ:
            if start < end:
                yield start, end
            return
        number = self._opened[fd]
        if number not in self._mapped:
            mapped = self._mapped[number] = Bitmap()  # a pool's blocks are whole grains
            snapshot = self._snapshot(number)
            for first, last in self.pool.mapped(snapshot):  # also past the end, after a shrink
                mapped.mark(first, min(last, snapshot.size))
        for first, last in self._mapped[number].runs(1, -(-end // GRAIN)):
            if last * GRAIN > start:
                yield max(first * GRAIN, start), min(last * GRAIN, end)
