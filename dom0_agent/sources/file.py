# SPDX-License-Identifier: GPL-2.0-or-later
"""Source ``file``: image files on any file system. A snapshot is a copy, a delta a comparison.
Needs no root.
"""

import errno
import os
from collections.abc import Iterator

from common.durable import closing_fd, pwrite_all
from common.override import override
from dom0_agent.sources import Range
from dom0_agent.sources.directory import DirectorySource
from dom0_agent.sources.files import CHECK_ROOM, failed

_BLOCK = 1 << 20
_GRAIN = 64 * 1024


class FileSource(DirectorySource):
    """See Source. Copies keep holes; on a file system with reflinks the kernel makes the copy a
    clone by itself.
    """

    def _copy(self, image: int, copy: int) -> None:
        size, unchecked = os.fstat(image).st_size, 0
        os.truncate(copy, size)
        for start, end in self.data_ranges(image, 0, size):
            while start < end:
                copied = _copy_range(image, copy, start, min(end - start, CHECK_ROOM))
                if copied == 0:  # the image shrank meanwhile: the rest stays a hole
                    return
                start, unchecked = start + copied, unchecked + copied
                if unchecked >= CHECK_ROOM:  # before the qubes whose images are here find it full
                    self.require_room()
                    unchecked = 0

    @override
    def delta(self, old: int, new: int) -> Iterator[Range]:
        with closing_fd(self.open(old)) as base, closing_fd(self.open(new)) as now:
            size = min(os.fstat(base).st_size, os.fstat(now).st_size)
            held = (self.data_ranges(fd, 0, size) for fd in (base, now))
            for start, end in _union(*held):
                for at in range(start - start % _GRAIN, end, _BLOCK):
                    length = min(_BLOCK, size - at)
                    old_block, new_block = (self._block(fd, length, at) for fd in (base, now))
                    yield from _compare(old_block, new_block, at)

    def _block(self, fd: int, length: int, at: int) -> bytes:
        try:
            return os.pread(fd, length, at)
        except OSError as error:
            raise failed(f"{self.name}: cannot read a snapshot", error) from None


def _copy_range(source: int, target: int, at: int, length: int) -> int:
    try:
        return os.copy_file_range(source, target, length, at, at)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
            raise
        data = os.pread(source, min(length, _BLOCK), at)
        pwrite_all(target, data, at)
        return len(data)


def _compare(old: bytes, new: bytes, at: int) -> Iterator[Range]:
    if old != new:
        for offset in range(0, len(new), _GRAIN):
            if old[offset : offset + _GRAIN] != new[offset : offset + _GRAIN]:
                yield at + offset, at + min(offset + _GRAIN, len(new))


def _union(*series: Iterator[Range]) -> Iterator[Range]:
    """Merge ordered series of ranges into one, joining those that touch or share a grain."""
    import heapq

    current: Range | None = None
    for start, end in heapq.merge(*series):
        if current is not None and start // _GRAIN <= (current[1] - 1) // _GRAIN + 1:
            current = (current[0], max(current[1], end))
            continue
        if current is not None:
            yield current
        current = (start, end)
    if current is not None:
        yield current
