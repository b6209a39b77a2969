# SPDX-License-Identifier: GPL-2.0-or-later
"""Source ``zfs``: volumes (zvols) below a ZFS dataset. Deltas come from ``zfs send -i``.

A snapshot is one of ZFS, named ``VOLUME@sparsebak-NUMBER``: qubesd takes for its own only names
that begin with ``qubes``. Nobody holds it, so that whoever removes or rolls back the volume is not
kept from it; the base is gone then, and the next session compares by content. It has no device
until it is read: then a read-only clone stands for it, ``DATASET/.sparsebak:QUBE:VOLUME:NUMBER``,
below the pool's own dataset, so that dom0's udev leaves it alone as it does the volumes.
"""

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress

from common.override import override
from dom0_agent.config import ZVOLS, Volume
from dom0_agent.kernel import ZvolName
from dom0_agent.sources import (
    Range,
    Source,
    programs,
    snapshot_name,
    snapshot_number,
    snapshot_numbers,
    zfs_stream,
)
from dom0_agent.sources.zfs_pool import Dataset, ZfsPool
from wire.status import Code, Refused

OURS = "sparsebak-"
"""What the names of our snapshots begin with, after the ``@``."""
NAME_LIMIT = 255
"""Longest name of a dataset or snapshot."""
_APPEARS = 10.0
"""Seconds that the device of a clone may take to appear."""
_BLKZNAME = 0x8100127D  # OpenZFS, include/sys/fs/zfs.h
_CLONE = (
    "readonly=on",
    "volmode=dev",  # nobody looks for partitions in it
    "snapdev=hidden",
    "refreservation=none",
    "com.sun:auto-snapshot=false",
)


class ZfsSource(Source):
    """See Source."""

    def __init__(self, volume: Volume, pool: ZfsPool) -> None:
        self.name, self.pool = volume.name, pool
        self.dataset = f"{pool.dataset}/{volume.vid}"
        self._clones = f"{pool.dataset}/.sparsebak:{volume.identity}:{volume.volume}:"
        self.unfinished = f"{self._clones}new"
        """What a restore writes to, in the place of a clone's name."""

    @override
    def together(self) -> AbstractContextManager[None]:
        """There is nothing to share but the list of what there is."""
        return nullcontext()

    @override
    def require_room(self) -> None:
        self.pool.require_room()

    @override
    def live_size(self) -> int:
        found = self.pool.find(self.dataset)
        if found is None or not found.size:
            raise Refused(Code.SOURCE_FAILED, f"{self.name}: there is no volume {self.dataset}")
        return found.size

    def _name(self, number: int) -> str:
        return f"{self.dataset}@{OURS}{snapshot_name(number)}"

    def _clone(self, number: int) -> str:
        return self._clones + snapshot_name(number)

    def _snapshot(self, number: int) -> Dataset:
        found = self.pool.find(self._name(number))
        if found is None:
            raise Refused(Code.SOURCE_FAILED, f"{self.name}: {self._name(number)} is gone")
        return found

    @override
    def snapshots(self) -> set[int]:
        """Where the volume is gone, what was read of it last may still be there as a clone."""
        prefix = f"{self.dataset}@{OURS}" if self.pool.find(self.dataset) else self._clones
        return snapshot_numbers(one.name.removeprefix(prefix) for one in self.pool.named(prefix))

    @override
    def snapshot(self, number: int) -> None:
        self.live_size()
        name = self._name(number)
        if max(len(name), len(self._clone(number))) > NAME_LIMIT:
            raise Refused(
                Code.SOURCE_FAILED, f"{self.name}: its name is too long for a snapshot of it"
            )
        try:
            self.pool.change("zfs", "snapshot", name)
        except BaseException:
            if self.pool.find(name) is not None:
                self.pool.remove(name)
            raise

    @override
    def unchanged(self, number: int) -> bool:
        """Once what was written has reached the pool, a change is never less than a block."""
        self._snapshot(number)
        programs.run("zpool", "sync", self.dataset.partition("/")[0])
        written = programs.run(
            "zfs", "get", "-Hp", "-o", "value", "written@" + self._name(number).partition("@")[2],
            self.dataset,
        )  # fmt: skip
        return written.strip() == "0"

    @override
    def drop(self, number: int) -> None:
        for name in (self._clone(number), self._name(number)):
            if self.pool.find(name) is not None:
                self.pool.remove(name)

    @override
    def let_go(self) -> None:
        """A clone keeps the volume from being rolled back. One that is open stays."""
        for one in self.pool.named(self._clones):
            if snapshot_number(one.name.removeprefix(self._clones)) is not None:
                self.pool.remove(one.name, patience=0)

    @override
    def drop_unfinished(self) -> None:
        if self.pool.find(self.unfinished) is not None:
            self.pool.remove(self.unfinished)

    @override
    def size(self, number: int) -> int:
        return self._snapshot(number).size

    @override
    def open(self, number: int, direct: bool = False) -> int:
        flags = os.O_RDONLY | (os.O_DIRECT if direct else 0)
        try:
            return self.device(self._cloned(number), flags)
        except OSError as error:
            raise Refused(
                Code.SOURCE_FAILED, f"{self.name}: {self._clone(number)}: {error.strerror}"
            ) from None
        except Refused:
            self.pool.forget()
            if self.pool.find(self._clone(number)) is not None:
                raise
        return self.device(self._cloned(number), flags)  # another call just let it go

    def _cloned(self, number: int) -> str:
        """The clone that stands for a snapshot, made if it is not there."""
        snapshot, clone = self._snapshot(number), self._clone(number)
        if self.pool.find(clone) is None:
            options = [word for one in _CLONE for word in ("-o", one)]
            try:
                self.pool.change("zfs", "clone", *options, snapshot.name, clone)
            except Refused:
                if self.pool.find(clone) is None:  # another call may have been faster
                    raise
        return clone

    def device(self, name: str, flags: int) -> int:
        """The device of a volume, opened; waits for it to appear. Raises OSError where it is there
        and cannot be opened.

        udev makes the link a moment after the device, and the device that an old link leads to may
        be another volume's by now: so the device itself is asked what it is.
        """
        until = time.monotonic() + _APPEARS
        while True:
            with suppress(FileNotFoundError, NotADirectoryError):
                fd = os.open(ZVOLS / name, flags | os.O_CLOEXEC)
                if _stands_for(fd) == name:
                    return fd
                os.close(fd)
            if time.monotonic() > until:
                raise Refused(
                    Code.SOURCE_FAILED,
                    f"{self.name}: {ZVOLS / name} did not appear within {_APPEARS:.0f} seconds;"
                    " if the volume is encrypted, load its key with: zfs load-key",
                )
            time.sleep(0.02)

    @override
    def delta(self, old: int, new: int) -> Iterator[Range]:
        a, b = self._snapshot(old), self._snapshot(new)
        size = min(a.size, b.size)
        # As it is stored (-w): nothing is decompressed, and no key is needed.
        command = ["zfs", "send", "-w", "-i", "@" + a.name.partition("@")[2], b.name]
        with programs.printed(f"{self.name}: zfs send", *command) as stream:
            for start, end in zfs_stream.changed(stream, a.guid, b.guid):
                if start < size:
                    yield start, min(end, size)

    def held(self) -> int:
        """Bytes that only snapshots of ours hold, each alone."""
        return sum(self._snapshot(number).used for number in self.snapshots())

    @override
    def data_ranges(self, fd: int, start: int, end: int) -> Iterator[Range]:
        """ZFS does not tell which blocks a volume has; what has none is read as zeros, quickly."""
        if start < end:
            yield start, end


def _stands_for(fd: int) -> str | None:
    """The name of the volume that a device stands for; None for a device that is not one of ZFS."""
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        return None
    try:
        told = fcntl.ioctl(fd, _BLKZNAME, bytes(ZvolName.row().size))
    except OSError:
        return None
    return told.partition(b"\0")[0].decode("ascii", "replace")
