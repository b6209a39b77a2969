# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading from streams that give a little at a time, or end early."""

import pytest

from wire.stream import CutShort, read_exactly


class Dribble:
    """A stream that gives a byte or two at a time."""

    def __init__(self, data: bytes) -> None:
        self.data, self.asked = data, 0

    def read(self, size: int, /) -> bytes:
        assert size > 0
        part, self.data = self.data[: min(size, 2)], self.data[min(size, 2) :]
        return part


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10])
def test_exact_lengths_from_a_stream_that_dribbles(size: int) -> None:
    assert read_exactly(Dribble(b"0123456789"), size) == b"0123456789"[:size]


def test_a_stream_that_ends_early() -> None:
    with pytest.raises(CutShort, match="ended 3 bytes early"):
        read_exactly(Dribble(b"0123456"), 10)
    with pytest.raises(CutShort, match="ended 1 bytes early"):
        read_exactly(Dribble(b""), 1)
