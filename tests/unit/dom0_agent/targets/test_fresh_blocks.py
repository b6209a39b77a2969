# SPDX-License-Identifier: GPL-2.0-or-later
"""New blocks of a thin volume that hold what others left: a model of a pool that does not zero
them. tests/lvm has real ones.
"""

import os
from collections.abc import Iterator
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0_agent.targets import lvm
from dom0_agent.targets.lvm import FreshBlocks


class Thin:
    """A thin volume. What has no block reads as zeros; a block that comes holds other bytes."""

    def __init__(self, size: int, block: int) -> None:
        self.size, self.block = size, block
        self.blocks: dict[int, bytearray] = {}
        self.zeroed = 0

    def put(self, start: int, data: bytes) -> None:
        assert start + len(data) <= self.size
        for at in range(start, start + len(data)):
            held = self.blocks.setdefault(at // self.block, bytearray(b"x" * self.block))
            held[at % self.block] = data[at - start]

    def zero(self, fd: int, number: int, start: int, end: int) -> None:
        assert number == lvm._BLKZEROOUT
        self.zeroed += end - start
        self.put(start, bytes(end - start))

    def contents(self) -> bytes:
        count = -(-self.size // self.block)
        empty = bytes(self.block)
        return b"".join(bytes(self.blocks.get(at, empty)) for at in range(count))[: self.size]


@pytest.fixture(scope="module")
def device() -> Iterator[int]:
    fd = os.memfd_create("device")
    yield fd
    os.close(fd)


@given(
    st.sampled_from([4, 12, 16, 64]),
    st.sampled_from([4, 8, 16]),
    st.integers(1, 12),
    st.data(),
)
def test_nothing_of_others_is_left_in_a_restored_volume(
    device: int, block: int, chunk: int, count: int, data: st.DataObject
) -> None:
    """Chunks in any order, some of them zeros, which are not written; the last one may be short.
    Units are small: a block of a pool has 64 KiB at least.
    """
    size = count * chunk - data.draw(st.integers(0, chunk - 1))
    thin = Thin(size, block)
    os.ftruncate(device, size)
    written = data.draw(st.lists(st.integers(0, count - 1), unique=True))
    expected = bytearray(size)
    with patch.object(lvm, "_ioctl", thin.zero):
        fresh = FreshBlocks(device, block)
        zeroed = 0
        for number in written:
            start, end = number * chunk, min((number + 1) * chunk, size)
            zeroed += fresh.prepare(start, end)
            thin.put(start, bytes([1 + number]) * (end - start))
            expected[start:end] = bytes([1 + number]) * (end - start)
    assert thin.contents() == expected and thin.zeroed == zeroed
    touched = {at // block for at, byte in enumerate(expected) if byte}
    assert thin.blocks.keys() == touched, "what nothing is written to takes no space"
    assert not (zeroed and chunk % block == 0 and size % block == 0)
