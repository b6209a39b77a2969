"""Source ``reflink``: image files on Btrfs or XFS. A snapshot is a clone (FICLONE), a delta comes from FIEMAP.

``FICLONE`` is from Linux, ``include/uapi/linux/fs.h``. The pool need not be a subvolume, and nothing is read but maps.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress

from dom0_agent.log import WARNING, log
from dom0_agent.sources import Range
from dom0_agent.sources.directory import DirectorySource, failed
from dom0_agent.sources.fiemap import changed_ranges, exclusive, still_there
from wire.durable import closing_fd

_FICLONE = 0x40049409
_ATTEMPTS = 10
_ATTRIBUTE = "user.sparsebak.map"
"""Extended attribute of a snapshot: digest of its map up to its size."""


class ReflinkSource(DirectorySource):
    """See Source."""

    def _copy(self, image: int, copy: int) -> None:
        fcntl.ioctl(copy, _FICLONE, image)

    def unchanged(self, number: int) -> bool:
        """See Source. Both files lie at the same places, and writing would have moved the image's."""
        with closing_fd(self._open_image()) as image, closing_fd(self.open(number)) as base:
            try:
                size = os.fstat(base).st_size
                return os.fstat(image).st_size == size and still_there(
                    image, base, size, _remembered(base)
                )
            except OSError as error:
                raise failed(f"{self.name}: cannot read the map of the image", error) from None

    def delta(self, old: int, new: int) -> Iterator[Range]:
        """See Source. After a base that does not stop moving, everything counts as changed."""
        with closing_fd(self.open(old)) as a, closing_fd(self.open(new)) as b:
            try:
                size = min(os.fstat(a).st_size, os.fstat(b).st_size)
                whole = os.fstat(a).st_size == os.fstat(b).st_size == size
                changed, digest = changed_ranges(
                    a, b, size, _remembered(a) if whole else None, _ATTEMPTS
                )
            except OSError as error:
                raise failed(f"{self.name}: cannot read the map of a snapshot", error) from None
            if whole:
                _remember(b, digest)
        if changed is None:
            log(
                WARNING,
                f"{self.name}: the file system keeps moving blocks; taking everything as changed",
            )
            changed = [(0, size)]
        yield from changed

    def held(self) -> int:
        """See Source."""
        return sum(self._exclusive(number) for number in self.snapshots())

    def _exclusive(self, number: int) -> int:
        with closing_fd(self.open(number)) as fd:
            try:
                return exclusive(fd, os.fstat(fd).st_size)
            except OSError as error:
                raise failed(f"{self.name}: cannot read the map of a snapshot", error) from None


def _remembered(fd: int) -> bytes | None:
    """The digest of a snapshot's map as it was read when the snapshot was new."""
    try:
        return os.getxattr(fd, _ATTRIBUTE)
    except OSError:
        return None


def _remember(fd: int, digest: bytes) -> None:
    with suppress(OSError):  # only spares reading the map once more
        os.setxattr(fd, _ATTRIBUTE, digest)
