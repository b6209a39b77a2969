# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a file on Btrfs still holds what a clone of it does, by what was written since.

Every leaf of a tree says in which transaction it was last written, and so does what leads to it: a
search for what is as new as the clone passes over all that is older, in a millisecond of a million
items. What it finds of the file must be in the clone, too, to the byte. What it does not find was
in the file when it was cloned, and so in the clone. So the file has nothing that the clone has not;
and as both have as many bytes, nothing was taken away either, of which no leaf would tell.

That a leaf that is not written keeps its contents does not hold without copy on write.
"""

import fcntl
import os
from typing import NamedTuple, Self

from dom0_agent import kernel
from dom0_agent.sources import fiemap
from dom0_agent.sources.btrfs import EXTENT_DATA, INODE_ITEM, items_of
from dom0_agent.sources.extents import WORD
from dom0_agent.sources.flags import NOCOW, flags

_INO_LOOKUP = 0xD0009412
_LOOKUP, _INODE = kernel.TreeLookup.row(), kernel.InodeBegin.row()
_SUBVOLUME = 256
"""Object id of a subvolume's own folder (BTRFS_FIRST_FREE_OBJECTID)."""
MOST = 1 << 16
"""Items written since, beyond which the whole maps are compared instead."""
_APART = 1 << 20
"""Bytes between two items from which the clone's are looked up by two searches."""


class Mark(NamedTuple):
    """What is noted of a clone when it is made. The file that it is of: its file system, its
    subvolume, its number, and the transaction in which it was made, for numbers are given again.
    ``since``: a transaction that had not ended when the file was cloned; ``blocks``: of 512 bytes,
    of the clone.

    A pool that is copied to a new disk takes its clones along with what is noted of them, and files
    get the same numbers in the same transactions there, if they are copied in the same order. But
    transactions are counted from the beginning there, and one of before says nothing.
    """

    system: int
    tree: int
    inode: int
    born: int
    since: int
    blocks: int

    @classmethod
    def of(cls, image: int, since: int, blocks: int) -> Self:
        """Of a clone of an open file."""
        buffer = bytearray(_LOOKUP.size)
        _LOOKUP.pack_into(buffer, 0, 0, _SUBVOLUME, bytes(4080))
        fcntl.ioctl(image, _INO_LOOKUP, buffer)
        tree = _LOOKUP.unpack_from(buffer)[0]
        _, born = _inode(image)
        system = os.fstatvfs(image).f_fsid
        return cls(system, tree, os.fstat(image).st_ino, born, since, blocks)

    def text(self) -> bytes:
        """As it is written down."""
        return " ".join(map(str, self)).encode()

    @classmethod
    def parsed(cls, text: bytes) -> Self | None:
        """Undo text; None for what is none."""
        parts = text.split(b" ")
        if len(parts) != len(cls._fields) or not all(part.isdigit() for part in parts):
            return None
        return cls(*map(int, parts))


def transaction(empty: int) -> int:
    """A transaction that has not ended, or had not when a file was made just now."""
    return _inode(empty)[0]


def _inode(fd: int) -> tuple[int, int]:
    """The transaction in which the leaf of a file's inode was written, and in which the file was
    made. Raises OSError.
    """
    for (written, _, item), *_ in items_of(fd, INODE_ITEM, 0, 0):
        return written, _INODE.unpack_from(item)[0]
    raise FileNotFoundError("the file is in no tree yet")


def still_as_cloned(image: int, base: int, mark: Mark) -> bool:
    """Whether the file ``image``, of which ``base`` is a clone, certainly holds what that does.
    Raises OSError.

    The caller makes sure that nothing is written to the image meanwhile, by its time of change. Not
    certain is a file without copy on write: where the clone was moved away (defragmentation), what
    is written to the file goes to where it is, and no leaf is written.
    """
    fiemap.flush(image)
    status = os.fstat(image)
    if flags(image) & NOCOW or status.st_blocks != mark.blocks:
        return False
    if Mark.of(image, mark.since, mark.blocks) != mark:
        return False
    written = _written(image, mark.since)
    if written is None or not _holds(base, written):
        return False
    return _written(image, mark.since) == written  # balance moves what nobody writes


def _written(image: int, since: int) -> list[tuple[int, bytes]] | None:
    """Offset and bytes of what was written since; None when it is too much."""
    found: list[tuple[int, bytes]] = []
    for items in items_of(image, EXTENT_DATA, 0, WORD, since):
        found += [(offset, bytes(item)) for _, offset, item in items]
        if len(found) > MOST:
            return None
    return found


def _holds(base: int, wanted: list[tuple[int, bytes]]) -> bool:
    """Whether a file has all of these items."""
    start = 0
    for end in range(1, len(wanted) + 1):
        if end < len(wanted) and wanted[end][0] - wanted[end - 1][0] < _APART:
            continue
        first, last = wanted[start][0], wanted[end - 1][0]
        held = dict[int, bytes]()
        for items in items_of(base, EXTENT_DATA, first, last):
            held.update((offset, bytes(item)) for _, offset, item in items)
        if any(held.get(offset) != item for offset, item in wanted[start:end]):
            return False
        start = end
    return True
