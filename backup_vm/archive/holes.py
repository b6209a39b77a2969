# SPDX-License-Identifier: GPL-2.0-or-later
"""Holes in packs: where chunks were that nothing needed any more, and whose space was given back.

A hole reads as zeros, and no file system tells zeros that were written from those of a hole that
freed no block. So a chunk becomes one only where there is a block to free, and packs without holes
have none.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from backup_vm.archive import packs
from backup_vm.archive.packs import Packed
from backup_vm.errors import DamagedError, UnreadableError

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive

BLOCK = 4096
"""Bytes that a file system frees at once, at least."""


def has_block(entry: Packed) -> bool:
    """Whether there is a whole block in a chunk, which a hole would free."""
    return -entry.offset % BLOCK + BLOCK <= entry.length


def holes(
    archive: "Archive", name: str, entries: Iterable[Packed], unread: set[str] | None = None
) -> Iterator[bool]:
    """Of each entry, whether its space was given back: a hole, where the random salt of a sealed
    chunk would be.

    What cannot be read counts as a hole: it is of as little use now. Its pack is added to those
    ``unread``.
    """
    if not may_have_holes(archive, name):
        yield from (False for _ in entries)
        return
    with packs.PackReader(archive.storage) as reader:
        for one in entries:
            try:
                yield reader.hollow(name, one)
            except UnreadableError:
                if unread is not None:
                    unread.add(name)
                yield True


def may_have_holes(archive: "Archive", name: str) -> bool:
    """Whether a pack has holes, or that cannot be known."""
    with suppress(OSError, DamagedError):  # a FIFO in its place, say: it is not read either
        return archive.storage.has_holes(name)
    return True
