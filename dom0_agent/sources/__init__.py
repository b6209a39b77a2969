# SPDX-License-Identifier: GPL-2.0-or-later
"""Kinds of storage, one module each, with the methods of Source. They read volumes, and write
nothing but snapshots of their own: new contents are the business of ``targets``. What a restore
left unfinished they remove, for every call does that, and most have no use for the rest of a
restore.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dom0_agent.config import Pool, Volume
from wire.status import Refused

if TYPE_CHECKING:
    from dom0_agent.sources.thin_pool import ThinPool
    from dom0_agent.sources.zfs_pool import ZfsPool

Range = tuple[int, int]
"""Bytes from the first number up to, not including, the second."""

_NUMBER = re.compile(r"(\d{1,9})-([0-9a-f]{8})", re.ASCII)


def snapshot_name(number: int) -> str:
    """How storage names a snapshot: ``12-9f3a12bc``, its sequence and 32 random bits. See State for
    why.
    """
    return f"{number >> 32}-{number & 0xFFFFFFFF:08x}"


def snapshot_number(name: str) -> int | None:
    """Undo snapshot_name; None for what it did not make."""
    found = _NUMBER.fullmatch(name)
    return int(found[1]) << 32 | int(found[2], 16) if found else None


def snapshot_numbers(names: Iterable[str]) -> set[int]:
    """The numbers of those names that snapshot_name made."""
    return {number for name in names if (number := snapshot_number(name)) is not None}


class Unreadable(Refused):
    """Something that the disk has lost: a bad sector. A snapshot may have one while the volume,
    which was written since, is sound.
    """


class Source(Protocol):
    """One volume in its storage. Snapshots are known by number. Every method may raise
    wire.status.Refused.
    """

    def together(self) -> AbstractContextManager[None]:
        """What is done inside, for all volumes of a pool, shares what their deltas have in common.

        Snapshots dropped inside may stay until its end.
        """

    def require_room(self) -> None:
        """Refused when the storage is too full for a snapshot that is held while a session
        is sent.
        """

    def live_size(self) -> int:
        """Bytes of the volume itself."""

    def snapshots(self) -> set[int]:
        """Numbers of the snapshots of ours that exist."""

    def snapshot(self, number: int) -> None:
        """Take a snapshot of the volume, durably, or leave none behind."""

    def unchanged(self, number: int) -> bool:
        """Whether the volume certainly holds now what a snapshot does, so that another one would
        say nothing new.

        No may be said without looking, where finding out costs as much as a snapshot.
        """

    def drop(self, number: int) -> None:
        """Remove a snapshot; nothing happens when it is gone."""

    def let_go(self) -> None:
        """Remove what stands for snapshots only while they are read, and is read by nobody."""
        return  # most have nothing of the kind

    def drop_unfinished(self) -> None:
        """Remove what a restore that was cut off left beside the volume; nothing happens when there
        is nothing.
        """

    def size(self, number: int) -> int:
        """Bytes of a snapshot."""

    def open(self, number: int, direct: bool = False) -> int:
        """A descriptor to read a snapshot from, to be closed by the caller.

        With ``direct`` past the page cache, if the storage can: a snapshot is read once, and its
        pages would only push out others. Reads must then be aligned, in memory too.
        """

    def delta(self, old: int, new: int) -> Iterator[Range]:
        """Ranges in which ``new`` may differ from ``old``, in order, within the smaller of their
        sizes.
        """

    def data_ranges(self, fd: int, start: int, end: int) -> Iterator[Range]:
        """Ranges between ``start`` and ``end`` of an opened snapshot that may hold anything but
        zeros, in order.
        """


class Sources:
    """The sources of one call or command. Those of one pool of LVM or ZFS share what is
    reported of it.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._pools: dict[Pool, ThinPool] = {}  # a name may have meant another one once
        self._zfs: dict[Pool, ZfsPool] = {}

    def open(self, volume: Volume) -> Source:
        """The source of a volume, by its pool's driver."""
        if volume.pool.driver == "lvm_thin":
            from dom0_agent.sources.lvm_thin import LvmThinSource

            return LvmThinSource(volume, self._pool(volume))
        if volume.pool.driver == "zfs":
            from dom0_agent.sources.zfs import ZfsSource
            from dom0_agent.sources.zfs_pool import ZfsPool

            return ZfsSource(volume, self._zfs.setdefault(volume.pool, ZfsPool(volume.pool)))
        if volume.pool.driver == "reflink":
            from dom0_agent.sources.reflink import ReflinkSource

            return ReflinkSource(volume)
        from dom0_agent.sources.file import FileSource  # documents, too: small files of ours

        return FileSource(volume)

    def _pool(self, volume: Volume) -> "ThinPool":
        from dom0_agent.sources.thin_pool import Report, ThinPool

        if volume.pool not in self._pools:
            known = next(iter(self._pools.values()), None)
            self._pools[volume.pool] = ThinPool(
                volume.pool, self._state_dir, known.report if known else Report()
            )
        return self._pools[volume.pool]

    @contextmanager
    def together(self, volumes: list[Volume]) -> Iterator[None]:
        """See Source, for volumes of any number of pools."""
        with ExitStack() as stack:
            for volume in {volume.pool: volume for volume in volumes}.values():
                stack.enter_context(self.open(volume).together())
            yield
