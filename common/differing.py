# SPDX-License-Identifier: GPL-2.0-or-later
"""Which chunks of a file differ from the ones that it should have."""

from collections.abc import Callable, Iterator
from itertools import groupby

from common.pipeline import in_order

_TOGETHER = 1 << 20
"""Bytes that are read and compared by a thread at a time, unless a chunk is larger."""


def runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Rising numbers as runs: (first, end)."""
    for _, group in groupby(enumerate(numbers), lambda item: item[1] - item[0]):
        together = [number for _, number in group]
        yield together[0], together[-1] + 1


def differing(
    read: Callable[[int, int], bytes | memoryview],
    id_of: Callable[[bytes | memoryview], bytes],
    size: int,
    chunks: list[tuple[int, bytes]],
    threads: int,
) -> Iterator[int]:
    """Of chunks of ``size`` bytes, with the ids that they should have, the numbers of those that
    have not, in order. ``read(offset, length)`` gives what is there; what it cannot read (OSError)
    is not as it should be.
    """

    def compare(together: list[tuple[int, bytes]]) -> list[int]:
        return [number for number, chunk_id in together if not is_there(number, chunk_id)]

    def is_there(number: int, chunk_id: bytes) -> bool:
        try:
            return id_of(read(number * size, size)) == chunk_id
        except OSError:  # a bad sector, say, which is a reason for a restore
            return False

    most = max(1, _TOGETHER // size)
    groups = (chunks[at : at + most] for at in range(0, len(chunks), most))
    for numbers in in_order(compare, groups, threads, 2 * threads):
        yield from numbers
