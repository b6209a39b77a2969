# SPDX-License-Identifier: GPL-2.0-or-later
"""Source ``reflink``: image files on Btrfs or XFS. A snapshot is a clone (FICLONE), a delta
compares where two clones are.

On Btrfs that is read from its trees, where this process may (``btrfs``); else by FIEMAP
(``fiemap``). The pool need not be a subvolume, and nothing is read but maps.
"""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import suppress

from common.clone import clone
from common.durable import closing_fd
from common.override import override
from dom0_agent.bitmap import GRAIN, Bitmap
from dom0_agent.log import WARNING, log
from dom0_agent.sources import Range, btrfs, btrfs_since, fiemap
from dom0_agent.sources.directory import DirectorySource
from dom0_agent.sources.extents import (
    PIECES,
    Reader,
    TooManyPieces,
    changed_ranges,
    ranges,
    still_there,
)
from dom0_agent.sources.files import failed
from dom0_agent.sources.flags import match_nocow
from wire.status import Code, Refused

_ATTEMPTS = 10
_MAP = "user.sparsebak.map"
"""Extended attribute of a snapshot: digest of its map up to its size, taken when it was new. So the
base's map need be read twice in each rotation, not three times.
"""
_STAMP = "user.sparsebak.stamp"
"""Extended attribute of a snapshot: which file it was cloned from, and when that had last changed,
if that was long enough before.
"""
_MARK = "user.sparsebak.since"
"""Extended attribute of a snapshot on Btrfs: the file it was cloned from, and the transaction."""
HOLES = 1 << 20
"""Holes asked for at most: ten seconds; 64 GiB at the least have been looked through then."""
_TICK = 1_000_000_000
"""Nanoseconds; the file system's clock moves in steps of some milliseconds, within which two
changes have one time.
"""


class ReflinkSource(DirectorySource):
    """See Source."""

    _grain = GRAIN

    def _copy(self, image: int, copy: int) -> None:
        # Btrfs clones a file into one that is as it is in this: with copy on write and checksums,
        # or without.
        match_nocow(image, copy)
        made, since = os.fstat(copy).st_ctime_ns, _transaction(copy)
        try:
            clone(image, copy)
        except OSError as error:
            raise self._cannot_clone(error) from None
        stamp = os.fstat(image)
        rests = stamp.st_ctime_ns < made - _TICK
        if not rests and since is None:
            return
        # Or a crash could take the image back to a time before the snapshot, with the same stamp.
        os.fsync(image)
        with suppress(OSError):  # only spares reading the maps
            if rests:
                os.setxattr(copy, _STAMP, _stamp(stamp))
            if since is not None:
                mark = btrfs_since.Mark.of(image, since, os.fstat(copy).st_blocks)
                os.setxattr(copy, _MARK, mark.text())

    def _cannot_clone(self, error: OSError) -> OSError | Refused:
        if error.errno == errno.EXDEV:
            return Refused(
                Code.SOURCE_FAILED,
                f"{self.name}: {self.image} is on another file system than its pool; "
                f"list {self.image.parent} as a pool of its own",
            )
        if error.errno == errno.EOPNOTSUPP:
            return Refused(
                Code.SOURCE_FAILED,
                f"{self.name}: the file system of {self.image} cannot clone files; "
                "give its pool the driver file",
            )
        if error.errno == errno.ETXTBSY:
            return Refused(Code.SOURCE_FAILED, f"{self.name}: {self.image} is in use as swap space")
        return error

    @override
    def unchanged(self, number: int) -> bool:
        """Either the image has the time of change that it had before the snapshot:
        whoever writes to it, maps it to write or truncates it sets that, and cannot set it back. Or
        nothing was written to it since, but that time. Or both files are at the same places:
        writing would have moved the image's."""
        with closing_fd(self._open_image()) as image, closing_fd(self.open(number)) as base:
            try:
                now, size = os.fstat(image), os.fstat(base).st_size
                if now.st_size != size:
                    return False
                # 0.3 ms, whatever the number of pieces. The transaction in Btrfs' inode item would
                # say the same without a clock, but is written with a delay: a change of this very
                # transaction does not show in it.
                if _attribute(base, _STAMP) == _stamp(now) or self._rests(image, base, now):
                    return True
                read = _reader(base)
                return still_there(read, image, base, size, _attribute(base, _MAP))
            except TooManyPieces:
                return False
            except OSError as error:
                raise failed(f"{self.name}: cannot read the map of the image", error) from None

    def _rests(self, image: int, base: int, now: os.stat_result) -> bool:
        """Whether nothing was written to the image since the base was cloned, and nothing is
        written while that is found out: a time of change that is not of just now would be another
        one. A qube that runs touches its image all the time, and then rests for hours.
        """
        mark = btrfs_since.Mark.parsed(_attribute(base, _MARK) or b"")
        if mark is None or not now.st_ctime_ns < time.time_ns() - _TICK:
            return False
        if not btrfs.readable(image) or not btrfs_since.still_as_cloned(image, base, mark):
            return False
        after = os.fstat(image)
        return (_stamp(after), after.st_blocks) == (_stamp(now), mark.blocks)

    @override
    def delta(self, old: int, new: int) -> Iterator[Range]:
        """After a base that does not stop moving, or of a file in very many pieces,
        everything is changed.
        """
        with closing_fd(self.open(old)) as base, closing_fd(self.open(new)) as now:
            size = min(os.fstat(base).st_size, os.fstat(now).st_size)
            changed = self._changed(base, now, size)
        yield from ranges(Bitmap.everything(size) if changed is None else changed, size)

    def differing(self, old: int, clone: int) -> Bitmap | None:
        """What an open clone of the image, which nobody writes to, may differ in from a snapshot of
        the same size; None where that cannot be told.
        """
        with closing_fd(self.open(old)) as base:
            size = os.fstat(base).st_size
            if os.fstat(clone).st_size != size:
                return None
            return self._changed(base, clone, size, note=False)

    def _changed(self, base: int, now: int, size: int, note: bool = True) -> Bitmap | None:
        """What of the first ``size`` bytes of an open file may differ from an open snapshot; None
        where that cannot be told. ``note``: ``now`` is a snapshot, with which something is to be
        compared later.
        """
        whole = os.fstat(base).st_size == os.fstat(now).st_size == size
        try:
            remembered = _attribute(base, _MAP) if whole else None
            read = _reader(base)
            changed, digest = changed_ranges(read, base, now, size, remembered, _ATTEMPTS)
        except TooManyPieces:
            log(
                WARNING,
                f"{self.name}: the image is in more than {PIECES} pieces; taking everything as"
                " changed (copied without reflinks, or defragmented, it is in fewer)",
            )
            return None
        except OSError as error:
            raise failed(f"{self.name}: cannot read the map of a snapshot", error) from None
        if changed is None:
            log(
                WARNING,
                f"{self.name}: the file system keeps moving blocks; taking everything as changed",
            )
        elif whole and note:
            with suppress(OSError):  # only spares reading the map once more
                os.setxattr(now, _MAP, digest)
        return changed

    @override
    def data_ranges(self, fd: int, start: int, end: int) -> Iterator[Range]:
        """A qube can tear its image into any number of pieces: where there are very
        many, the rest is data.
        """
        for count, (data, hole) in enumerate(super().data_ranges(fd, start, end)):
            if count == HOLES:
                yield data, end
                return
            yield data, hole


def _attribute(fd: int, name: str) -> bytes | None:
    """What was noted of a snapshot when it was new."""
    try:
        return os.getxattr(fd, name)
    except OSError:
        return None


def _stamp(status: os.stat_result) -> bytes:
    return f"{status.st_ino} {status.st_size} {status.st_ctime_ns}".encode()


def _transaction(empty: int) -> int | None:
    """One that has not ended; None where this process may not know."""
    with suppress(OSError):
        if btrfs.readable(empty):
            return btrfs_since.transaction(empty)
    return None


def _reader(fd: int) -> Reader:
    return btrfs.rows if btrfs.readable(fd) else fiemap.rows
