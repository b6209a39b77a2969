"""Kinds of storage, one module each. All offer the methods of Source; no other module touches a volume."""

from collections.abc import Iterator
from typing import Protocol

from dom0_agent.config import Volume

Range = tuple[int, int]
"""Bytes from the first number up to, not including, the second."""


class Replacement(Protocol):
    """New contents for a volume, written beside the old ones."""

    def write(self, offset: int, parts: list[bytes]) -> None:
        """Write parts one after another; what is never written reads as zeros. May be called from several threads."""

    def commit(self) -> None:
        """Put the new contents in the old ones' place, durably and at once."""

    def discard(self) -> None:
        """Forget the new contents; the volume is as it was."""


class Source(Protocol):
    """One volume in its storage. Snapshots are known by number. Every method may raise wire.status.Refused."""

    def live_size(self) -> int:
        """Bytes of the volume itself."""

    def snapshots(self) -> set[int]:
        """Numbers of the snapshots of ours that exist."""

    def snapshot(self, number: int) -> None:
        """Take a snapshot of the volume, durably, or leave none behind."""

    def drop(self, number: int) -> None:
        """Remove a snapshot; nothing happens when it is gone."""

    def size(self, number: int) -> int:
        """Bytes of a snapshot."""

    def open(self, number: int, direct: bool = False) -> int:
        """A descriptor to read a snapshot from, to be closed by the caller.

        With ``direct`` past the page cache, if the storage can: a snapshot is read once, and its pages would only push
        out others. Reads must then be aligned, in memory too.
        """

    def delta(self, old: int, new: int) -> Iterator[Range]:
        """Ranges in which ``new`` may differ from ``old``, in order, within the smaller of their sizes."""

    def data_ranges(self, fd: int, start: int, end: int) -> Iterator[Range]:
        """Ranges between ``start`` and ``end`` of an opened snapshot that may hold anything but zeros, in order."""

    def replace(self, size: int) -> Replacement:
        """Begin new contents of ``size`` bytes."""

    def clean(self) -> None:
        """Remove what an interrupted ``replace`` left."""

    def held(self) -> int:
        """Bytes of storage that snapshots of ours hold, as far as the storage can tell cheaply."""


def open_source(volume: Volume) -> Source:
    """The source of a volume, by its pool's driver."""
    if volume.pool.driver == "reflink":
        from dom0_agent.sources.reflink import ReflinkSource

        return ReflinkSource(volume)
    from dom0_agent.sources.file import FileSource

    return FileSource(volume)
