# SPDX-License-Identifier: GPL-2.0-or-later
"""Chunks that suit what is backed up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.archive.parameters import Parameters
from backup_vm.jobs.advice import HELD, MOST_CHUNKS, chunk_size_for
from backup_vm.jobs.doctor import of_chunk_size
from wire import CHUNK_SIZES, DEFAULT_CHUNK_SIZE
from wire.chunks import SUITE_BLAKE2B

TiB = 1 << 40


@given(st.integers(0, 1000 * TiB))
def test_the_smallest_that_suits(size: int) -> None:
    advised = chunk_size_for(size)
    assert advised in CHUNK_SIZES and advised >= DEFAULT_CHUNK_SIZE
    assert HELD * size // advised <= MOST_CHUNKS or advised == CHUNK_SIZES[-1]
    assert advised == DEFAULT_CHUNK_SIZE or HELD * size // (advised // 2) > MOST_CHUNKS


@pytest.mark.parametrize(
    ("size", "chunk", "advised"),
    [
        (2 * TiB, 128 << 10, ""),
        (4 * TiB, 128 << 10, ""),
        (10 * TiB, 128 << 10, "512K"),
        (10 * TiB, 1 << 20, ""),
        (100 * TiB, 128 << 10, "4M"),
        (0, 64 << 10, ""),
    ],
)
def test_doctor_says_what_suits_better(size: int, chunk: int, advised: str) -> None:
    parameters = Parameters(bytes(16), "test", SUITE_BLAKE2B, chunk, 0, (), bytes(32))
    remedies = [finding.remedy for finding in of_chunk_size(parameters, size)]
    assert [f"chunks of {advised} " in one for one in remedies] == [True] * bool(advised)
