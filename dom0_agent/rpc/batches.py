# SPDX-License-Identifier: GPL-2.0-or-later
"""Which chunks of a snapshot Extract looks at, in which order, and how many of them together."""

from collections.abc import Callable, Iterable, Iterator

from dom0_agent.sources import Range
from wire.chunks import ID_SIZE

Span = tuple[int, int, bool]
"""Chunks from the first up to, not including, the second, and whether they may hold data."""


class Batch:
    """Runs of chunks, each from a first to an end not included, and the ids known for them all, one
    after another. Without ``data`` all of them are zeros."""

    def __init__(self, runs: tuple[Range, ...], known: bytes, data: bool) -> None:
        self.runs, self.known, self.data = runs, known, data

    @property
    def end(self) -> int:
        """The first chunk after it."""
        return self.runs[-1][1]

    @property
    def count(self) -> int:
        """Chunks in it."""
        return len(self.known) // ID_SIZE

    def numbers(self) -> Iterator[int]:
        """The numbers of its chunks."""
        for first, end in self.runs:
            yield from range(first, end)


def spans(
    changed: Iterable[Range], data_in: Callable[[int, int], Iterable[Range]]
) -> Iterator[Span]:
    """The chunks of the ``changed`` runs, each once and in order, cut where data begins and ends.

    ``data_in(first, end)`` gives the runs of chunks from ``first`` to ``end`` that may hold data,
    in order and apart. It is asked for changed runs only: to ask for a whole volume may take long.
    """
    for first, end in changed:
        hole = first
        for begin, stop in data_in(first, end):
            if hole < begin:
                yield hole, begin, False
            yield begin, stop, True
            hole = stop
        if hole < end:
            yield hole, end, False


def in_chunks(ranges: Iterable[Range], chunk_size: int) -> Iterator[Range]:
    """Ranges of bytes, in order, as runs of the chunks that they touch, in order and apart."""
    begin = stop = -1
    for start, end in ranges:
        if start // chunk_size > stop:
            if begin < stop:
                yield begin, stop
            begin = start // chunk_size
        stop = -(-end // chunk_size)
    if begin < stop:
        yield begin, stop


def joined(pieces: Iterable[Batch], most: int) -> Iterator[Batch]:
    """Pieces with data together, as long as they have no more than ``most`` chunks: what is
    scattered is done at once, too.
    """
    held: Batch | None = None
    for piece in pieces:
        if held is not None and held.data and piece.data and held.count + piece.count <= most:
            held = Batch(held.runs + piece.runs, held.known + piece.known, True)
            continue
        if held is not None:
            yield held
        held = piece
    if held is not None:
        yield held
