# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the blocks of a file of ext4 are, by the 60 bytes that its inode has for that: a tree of
extents, or as ext2 has it, lists of blocks.

Both are read as runs: the first block within the file, how many, and the first in the file system.
"""

from collections.abc import Callable, Iterator
from struct import Struct, unpack_from

from backup_vm.files.readers.source import Malformed

_MAGIC = 0xF30A
_DEEPEST = 5
_INITIALIZED = 0x8000
_HEADER, _LEAF, _INDEX = Struct("<HHHHI"), Struct("<IHHI"), Struct("<IIHH")
Read = Callable[[int], bytes]
"""A block of the file system by its number."""


def in_tree(block: Read, raw: bytes, deepest: int = _DEEPEST) -> Iterator[tuple[int, int, int]]:
    """Runs of a tree with its root in ``raw``. Raises Malformed."""
    magic, count, _, depth, _ = _HEADER.unpack_from(raw)
    if magic != _MAGIC or depth > deepest or 12 + 12 * count > len(raw):
        raise Malformed("the map of a file is damaged")
    for at in range(12, 12 + 12 * count, 12):
        if depth:
            _, low, high, _ = _INDEX.unpack_from(raw, at)
            yield from in_tree(block, block(low | high << 32), depth - 1)
        else:
            first, length, high, low = _LEAF.unpack_from(raw, at)
            if length <= _INITIALIZED:  # else nothing was written there
                yield first, length, low | high << 32


def in_lists(block: Read, raw: bytes, size: int, blocks: int) -> Iterator[tuple[int, int, int]]:
    """Runs of the first ``blocks`` blocks, of ``size`` bytes: ``raw`` has 12 of them, then a list
    of blocks, a list of lists, and a list of those.
    """
    each = size // 4
    spans = [1] * 12 + [each, each**2, each**3]
    first = count = where = base = 0
    for pointer, span in zip(unpack_from("<15I", raw), spans, strict=True):
        for number, one in _below(block, pointer, span, base, blocks, each):
            if count and number == first + count and one == where + count:
                count += 1
                continue
            if count:
                yield first, count, where
            first, count, where = number, 1, one
        base += span
    if count:
        yield first, count, where


def _below(
    block: Read, pointer: int, span: int, base: int, end: int, each: int
) -> Iterator[tuple[int, int]]:
    if not pointer or base >= end:
        return
    if span == 1:
        yield base, pointer
        return
    step = span // each
    for i, one in enumerate(unpack_from(f"<{each}I", block(pointer))):
        yield from _below(block, one, step, base + i * step, end, each)
