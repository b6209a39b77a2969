"""Where the file system keeps a file's bytes: the FIEMAP ioctl, and what two maps say about each other.

Structures and flags: Linux, ``include/uapi/linux/fiemap.h``. FIEMAP is used on our own immutable clones only.
"""

import errno
import fcntl
import hashlib
import struct
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

_FS_IOC_FIEMAP = 0xC020660B
_SYNC = 1
_HEAD = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQQQI12x")
_BATCH = 2048

_LAST = 0x1
ENCODED = 0x8
UNWRITTEN = 0x800
DOUBTFUL = 0x2 | 0x4 | 0x80 | 0x100 | 0x200 | 0x400
"""Unknown, delalloc, encrypted, not aligned, inline, tail: nothing can be concluded from such an extent."""
_MEANINGFUL = ENCODED | UNWRITTEN | DOUBTFUL
"""Flags that are compared. "Shared", "merged" and "last" change without the data changing."""

WHOLE_ENCODED = 128 * 1024
"""Longest compressed extent Btrfs writes: a record of this length is the extent from its first byte to its last."""
_REMEMBERED = 200_000


class Extent(NamedTuple):
    """``length`` bytes of the file at ``logical`` lie at ``physical``."""

    logical: int
    physical: int
    length: int
    flags: int


def extents(fd: int, size: int) -> Iterator[Extent]:
    """The extents of a file up to ``size`` bytes, in order, adjoining ones joined."""
    pending: Extent | None = None
    for extent in _raw_extents(fd, size):
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
            yield Extent(logical, physical, length, flags & _MEANINGFUL)
            if logical + length <= start:
                raise OSError(errno.EIO, "the file system's map does not advance")
            start = logical + length
        if flags & _LAST:
            return


class _Watched:
    """A file's extents, with a digest of all that passed by and a count of short compressed extents by place."""

    def __init__(self, fd: int, size: int) -> None:
        self._source = extents(fd, size)
        self._digest = hashlib.blake2b(digest_size=16)
        self.encoded: Counter[int] = Counter()
        self._overflown = False

    def __iter__(self) -> Iterator[Extent]:
        for extent in self._source:
            self._digest.update(struct.pack("<QQQI", *extent))
            if extent.flags & ENCODED and extent.length != WHOLE_ENCODED and not self._overflown:
                self.encoded[extent.physical] += 1
                if len(self.encoded) > _REMEMBERED:  # bounded memory: from here on none of them counts as known
                    self.encoded.clear()
                    self._overflown = True
            yield extent

    def digest(self) -> bytes:
        """Digest of the whole map, read to its end."""
        for _ in self:
            pass
        return self._digest.digest()


def moved_or_changed(base: int, new: int, size: int) -> list[tuple[int, int]] | None:
    """Ranges below ``size`` in which the file ``new`` may differ from the file ``base``.

    The base's map is read before, while and after the new one's. If it is the same each time, the base held its
    blocks all the while, so that equal places mean equal bytes. None when it moved (balance, defragmentation):
    the caller reads again.
    """
    before = _Watched(base, size)
    digest = before.digest()
    during = _Watched(base, size)
    changed = list(_differences(iter(during), extents(new, size), size, before.encoded))
    if during.digest() != digest or _Watched(base, size).digest() != digest:
        return None
    return changed


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
