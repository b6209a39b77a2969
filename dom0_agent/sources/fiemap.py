"""Where the file system keeps a file's bytes: the FIEMAP ioctl, and what two maps say about each other.

Structures and flags: Linux, ``include/uapi/linux/fiemap.h``. FIEMAP is used on our own immutable clones only.
"""

import errno
import fcntl
import hashlib
import struct
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

_FS_IOC_FIEMAP = 0xC020660B
_SYNC = 1
_HEAD = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQQQI12x")
_BATCH = 2048

_LAST = 0x1
_SHARED = 0x2000
ENCODED = 0x8
UNWRITTEN = 0x800
DOUBTFUL = 0x2 | 0x4 | 0x80 | 0x100 | 0x200 | 0x400
"""Unknown, delalloc, encrypted, not aligned, inline, tail: nothing can be concluded from such an extent."""
_MEANINGFUL = ENCODED | UNWRITTEN | DOUBTFUL
"""Flags that are compared. "Shared", "merged" and "last" change without the data changing."""

WHOLE_ENCODED = 128 * 1024
"""Longest compressed extent Btrfs writes: a record of this length is the extent from its first byte to its last."""

Range = tuple[int, int]


class Extent(NamedTuple):
    """``length`` bytes of the file at ``logical`` lie at ``physical``."""

    logical: int
    physical: int
    length: int
    flags: int


def extents(fd: int, size: int) -> Iterator[Extent]:
    """The extents of a file up to ``size`` bytes, in order, adjoining ones joined."""
    pending: Extent | None = None
    for raw in _raw_extents(fd, size):
        extent = raw._replace(flags=raw.flags & _MEANINGFUL)
        if (
            pending is not None
            and not extent.flags & (ENCODED | DOUBTFUL)
            and extent.flags == pending.flags
            and extent.logical == pending.logical + pending.length
            and extent.physical == pending.physical + pending.length
        ):
            pending = pending._replace(length=pending.length + extent.length)
            continue
        if pending is not None:
            yield pending
        pending = extent
    if pending is not None:
        yield pending


def exclusive(fd: int, size: int) -> int:
    """Bytes of a file that no other file shares."""
    return sum(extent.length for extent in _raw_extents(fd, size) if not extent.flags & _SHARED)


def _raw_extents(fd: int, size: int) -> Iterator[Extent]:
    start = 0
    while start < size:
        buffer = bytearray(_HEAD.size + _BATCH * 56)
        _HEAD.pack_into(buffer, 0, start, size - start, _SYNC, 0, _BATCH, 0)
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, buffer)
        count = _HEAD.unpack_from(buffer)[3]
        if count == 0:
            return
        flags = 0
        for at in range(_HEAD.size, _HEAD.size + count * 56, 56):
            logical, physical, length, _, _, flags = _EXTENT.unpack_from(buffer, at)
            yield Extent(logical, physical, length, flags)
            if logical + length <= start:
                raise OSError(errno.EIO, "the file system's map does not advance")
            start = logical + length
        if flags & _LAST:
            return


class Map:
    """A file's whole map, read once: 28 bytes an extent, a digest of it all, and how often a compressed extent occurs."""

    def __init__(self, fd: int, size: int) -> None:
        self._places, self._flags = array("Q"), array("I")
        self.encoded: Counter[int] = Counter()
        for extent in extents(fd, size):
            self._places.extend(extent[:3])
            self._flags.append(extent.flags)
            if extent.flags & ENCODED and extent.length != WHOLE_ENCODED:
                self.encoded[extent.physical] += 1
        digest = hashlib.blake2b(self._places.tobytes(), digest_size=16)
        digest.update(self._flags.tobytes())
        self.digest = digest.digest()

    def __iter__(self) -> Iterator[Extent]:
        places = self._places
        for at, flags in enumerate(self._flags):
            yield Extent(places[3 * at], places[3 * at + 1], places[3 * at + 2], flags)


def changed_ranges(base: int, new: int, size: int, remembered: bytes | None, attempts: int) -> tuple[list[Range] | None, bytes]:
    """Ranges below ``size`` in which the file ``new`` may differ from the file ``base``, and the digest of new's map.

    ``remembered``: the digest of the base's map as it was read some time ago. The new map is read, then the base's. If
    that is as it was before the new one was read, the base held its blocks all the while, so that equal places mean
    equal bytes. If not, the base moved (balance, defragmentation): both are read again. None when it keeps moving.
    """
    before = remembered
    for _ in range(attempts):
        fresh = Map(new, size)
        held = Map(base, size)
        if held.digest == before:
            return list(_differences(iter(held), iter(fresh), size, held.encoded)), fresh.digest
        before = held.digest
    return None, fresh.digest


def _differences(base: Iterator[Extent], new: Iterator[Extent], size: int, encoded: Counter[int]) -> Iterator[tuple[int, int]]:
    at, begin = 0, -1
    a, b = next(base, None), next(new, None)
    while at < size:
        while a is not None and a.logical + a.length <= at:
            a = next(base, None)
        while b is not None and b.logical + b.length <= at:
            b = next(new, None)
        here_a, end_a = _at(a, at, size)
        here_b, end_b = _at(b, at, size)
        same = _same(here_a, here_b, encoded)
        if not same and begin < 0:
            begin = at
        elif same and begin >= 0:
            yield begin, at
            begin = -1
        at = min(end_a, end_b)
    if begin >= 0:
        yield begin, size


def _at(extent: Extent | None, at: int, size: int) -> tuple[Extent | None, int]:
    """The extent if it covers ``at`` (else None: a hole), and where that ends."""
    if extent is None:
        return None, size
    if extent.logical > at:
        return None, min(extent.logical, size)
    return extent, min(extent.logical + extent.length, size)


def _same(a: Extent | None, b: Extent | None, encoded: Counter[int]) -> bool:
    """Whether two extents that cover the same byte certainly give it the same value."""
    flags_a = UNWRITTEN if a is None else a.flags
    flags_b = UNWRITTEN if b is None else b.flags
    if flags_a == flags_b == UNWRITTEN:  # holes and preallocated space both read as zeros
        return True
    if a is None or b is None or flags_a != flags_b or flags_a & DOUBTFUL:
        return False
    if flags_a & ENCODED:
        # FIEMAP does not say from where within a compressed extent a record takes its bytes. A whole extent leaves no
        # choice; a part that the base refers to once only cannot have come back from elsewhere in the file shifted.
        return a == b and (a.length == WHOLE_ENCODED or encoded[a.physical] == 1)
    return a.physical - a.logical == b.physical - b.logical
