"""Where the file system keeps a file's bytes: the FIEMAP ioctl, and what two maps say about each other.

Structures and flags: Linux, ``include/uapi/linux/fiemap.h``. What changed is asked of our own immutable clones only; of the
image itself no more than whether it still lies where its newest clone does.
"""

import errno
import fcntl
import hashlib
import struct
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import compress, zip_longest
from operator import add, and_, eq
from typing import NamedTuple

_FS_IOC_FIEMAP = 0xC020660B
_SYNC = 1
_HEAD = struct.Struct("=QQIIII")
_RECORD = 56
_BATCH = 2048
_WINDOW = 8192
"""Extents that are compared at a time."""

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


def exclusive(fd: int, size: int) -> int:
    """Bytes of a file that no other file shares."""
    rows = (
        row for words in records(fd, size) for row in zip(words[2::7], words[5::7], strict=True)
    )
    return sum(length for length, flags in rows if not flags & _SHARED)


def records(fd: int, size: int) -> "Iterator[array[int]]":
    """The kernel's records up to ``size`` bytes of the file, in order and some at a time: seven numbers of 64 bits each."""
    start = 0
    while start < size:
        buffer = bytearray(_HEAD.size + _BATCH * _RECORD)
        _HEAD.pack_into(buffer, 0, start, size - start, _SYNC, 0, _BATCH, 0)
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, buffer)
        count = _HEAD.unpack_from(buffer)[3]
        if count == 0:
            return
        words = array("Q", bytes(memoryview(buffer)[_HEAD.size : _HEAD.size + count * _RECORD]))
        yield words
        end = words[-7] + words[-5]
        if end <= start:
            raise OSError(errno.EIO, "the file system's map does not advance")
        start = end
        if words[-2] & _LAST:
            return


class Map:
    """A file's whole map from its records, in columns of 28 bytes an extent, adjoining extents joined; and a digest of it."""

    def __init__(self, read: "Iterable[array[int]]" = ()) -> None:
        self.logical, self.physical, self.length, self.flags = (
            array("Q"),
            array("Q"),
            array("Q"),
            array("I"),
        )
        for words in read:
            self.add(words)

    @cached_property
    def encoded(self) -> Counter[int]:
        """How often each compressed extent occurs of which not the whole is used."""
        places = zip(self.physical, self.length, self.flags, strict=True)
        return Counter(
            at for at, length, flags in places if flags & ENCODED and length != WHOLE_ENCODED
        )

    @cached_property
    def digest(self) -> bytes:
        """Digest of it all."""
        digest = hashlib.blake2b(digest_size=16)
        for column in self._columns():
            digest.update(column.tobytes())
        return digest.digest()

    def _columns(self) -> "tuple[array[int], ...]":
        return self.logical, self.physical, self.length, self.flags

    def add(self, words: "array[int]") -> None:
        """Take in records. What is done for each of them is done by the library's C code, for there may be millions."""
        new = (
            words[0::7],
            words[1::7],
            words[2::7],
            array("I", [flags & _MEANINGFUL for flags in words[5::7]]),
        )
        begin = max(0, len(self.flags) - 1)  # the last one, too, may be joined
        for column, added in zip(self._columns(), new, strict=True):
            column.extend(added)
        logical, physical, length, flags = (column[begin:] for column in self._columns())
        follow = map(eq, map(add, logical, length), logical[1:])
        alike = map(eq, map(add, physical, length), physical[1:])
        joined = [
            at
            for at, both in enumerate(map(and_, follow, alike), 1)
            if both and flags[at] == flags[at - 1] and not flags[at] & (ENCODED | DOUBTFUL)
        ]
        for at in reversed(joined):
            self.length[begin + at - 1] += self.length[begin + at]
        if joined:
            keep = bytearray(b"\1" * len(flags))
            for at in joined:
                keep[at] = 0
            for column in self._columns():
                column[begin:] = array(column.typecode, compress(column[begin:], keep))

    def extents(self, which: Iterable[int]) -> Iterator[Extent]:
        """The extents of these numbers."""
        return (
            Extent(self.logical[i], self.physical[i], self.length[i], self.flags[i]) for i in which
        )

    def _uncertain(self, rows: Iterable[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
        """Those of the extents that might hold other bytes in another file, though it has them at the same place."""
        unsure = (row for row in rows if row[3] & (ENCODED | DOUBTFUL))
        return (row for row in unsure if not _same(Extent(*row), Extent(*row), self.encoded))

    def certain(self) -> bool:
        """Whether another file with this map certainly holds the same bytes."""
        return next(self._uncertain(zip(*self._columns(), strict=True)), None) is None

    def differing(self, new: "Map") -> "tuple[array[int], array[int]]":
        """The numbers of the extents that this map and a newer one do not have in common, of each; in common are those alone
        that certainly hold the same bytes."""
        mine, others = array("Q"), array("Q")
        start = other = 0
        while start < len(self.flags) or other < len(new.flags):
            end = min(start + _WINDOW, len(self.flags))
            # Equal extents begin at the same place, so that both lie in the same window.
            upto = (
                bisect_right(new.logical, self.logical[end - 1])
                if end < len(self.flags)
                else len(new.flags)
            )
            a, b = self._window(start, end), new._window(other, upto)
            common = set(a).intersection(b)
            common -= set(self._uncertain(common))
            mine.extend(at for at, one in enumerate(a, start) if one not in common)
            others.extend(at for at, one in enumerate(b, other) if one not in common)
            start, other = end, upto
        return mine, others

    def _window(self, start: int, end: int) -> list[tuple[int, ...]]:
        return list(zip(*(column[start:end] for column in self._columns()), strict=True))


def changed_ranges(
    base: int, new: int, size: int, remembered: bytes | None, attempts: int
) -> tuple[list[Range] | None, bytes]:
    """Ranges below ``size`` in which the file ``new`` may differ from the file ``base``, and the digest of new's map.

    ``remembered``: the digest of the base's map as it was read some time ago. The new map is read, then the base's. If
    that is as it was before the new one was read, the base held its blocks all the while, so that equal places mean
    equal bytes. If not, the base moved (balance, defragmentation): both are read again. None when it keeps moving.
    """
    before = remembered
    for _ in range(attempts):
        fresh = Map(records(new, size))
        held = Map(records(base, size))
        if held.digest == before:
            a, b = held.differing(fresh)
            return list(
                _differences(held.extents(a), fresh.extents(b), size, held.encoded)
            ), fresh.digest
        before = held.digest
    return None, fresh.digest


def still_there(live: int, base: int, size: int, remembered: bytes | None) -> bool:
    """Whether the file ``live``, of which ``base`` is a clone of the same size, certainly holds what the clone does.

    Every place that the clone refers to is written elsewhere when the file is written (copy on write), so that an extent of
    the file that lies where the clone's does was not written since the clone was made. What is written while the maps are
    read comes after the moment at which reading them began, and for that moment the answer is given. (Only somebody who
    within these milliseconds cloned the clone's own blocks back over what was just written could deceive it.)
    ``remembered``: the digest of the clone's map when it was new, which it must have still, as for ``changed_ranges``.
    """
    if remembered is None:
        return False
    held = Map()
    for now, then in zip_longest(records(live, size), records(base, size)):
        if now is None or then is None or not _alike(now, then):
            return False
        held.add(then)
    return held.digest == remembered and held.certain()


def _alike(a: "array[int]", b: "array[int]") -> bool:
    """Whether records say the same, but for the flags that tell nothing of the data."""
    if any(a[column::7] != b[column::7] for column in range(3)):
        return False
    return all((x ^ y) & _MEANINGFUL == 0 for x, y in zip(a[5::7], b[5::7], strict=True))


def _differences(
    base: Iterator[Extent], new: Iterator[Extent], size: int, encoded: Counter[int]
) -> Iterator[tuple[int, int]]:
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
