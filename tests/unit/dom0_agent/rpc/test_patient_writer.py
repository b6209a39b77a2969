# SPDX-License-Identifier: GPL-2.0-or-later
"""Standard output of a service: every byte once and in order, however little is taken at a time."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0_agent.rpc import streams
from dom0_agent.rpc.streams import IOV_MAX, PatientWriter


@given(st.lists(st.binary(max_size=9), max_size=40), st.lists(st.integers(1, 30), min_size=1))
def test_parts_arrive_as_if_joined(parts: list[bytes], taken: list[int]) -> None:
    arrived, limits = bytearray(), iter(taken * 1000)

    def writev(fd: int, some: list[memoryview]) -> int:
        assert fd == 7 and 0 < len(some) <= IOV_MAX
        data = b"".join(some)[: next(limits)]
        arrived.extend(data)
        return len(data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams.os, "writev", writev)
        PatientWriter(7).writelines(parts)
    assert arrived == b"".join(parts)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


@pytest.mark.parametrize("count", [0, 1, IOV_MAX, IOV_MAX + 1, 3 * IOV_MAX])
def test_more_parts_than_the_system_takes_at_once(pipe: tuple[int, int], count: int) -> None:
    read, write = pipe
    PatientWriter(write).writelines([bytes((i % 251,)) if i % 2 else b"" for i in range(count)])
    PatientWriter(write).write(b"!")
    assert os.read(read, 1 << 16) == bytes(i % 251 for i in range(count) if i % 2) + b"!"
