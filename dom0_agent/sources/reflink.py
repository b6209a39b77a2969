"""Source ``reflink``: image files on Btrfs or XFS. A snapshot is a clone (FICLONE), a delta comes from FIEMAP.

``FICLONE`` is from Linux, ``include/uapi/linux/fs.h``. The pool need not be a subvolume, and nothing is read but maps.
"""

import fcntl
import os
from collections.abc import Iterator

from dom0_agent.log import WARNING, log
from dom0_agent.sources import Range
from dom0_agent.sources.directory import DirectorySource, failed
from dom0_agent.sources.fiemap import moved_or_changed

_FICLONE = 0x40049409
_ATTEMPTS = 10


class ReflinkSource(DirectorySource):
    """See Source."""

    def _copy(self, image: int, copy: int) -> None:
        fcntl.ioctl(copy, _FICLONE, image)

    def delta(self, old: int, new: int) -> Iterator[Range]:
        """See Source. After a base that does not stop moving, everything counts as changed."""
        a, b = self.open(old), self.open(new)
        try:
            size = min(os.fstat(a).st_size, os.fstat(b).st_size)
            for _ in range(_ATTEMPTS):
                changed = moved_or_changed(a, b, size)
                if changed is not None:
                    yield from changed
                    return
            log(WARNING, f"{self.name}: the file system keeps moving blocks; taking everything as changed")
            yield 0, size
        except OSError as error:
            raise failed(f"{self.name}: cannot read the map of a snapshot", error) from None
        finally:
            os.close(a)
            os.close(b)
