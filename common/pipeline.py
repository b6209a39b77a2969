# SPDX-License-Identifier: GPL-2.0-or-later
"""Work on a few threads, results in order, memory bounded. The libraries that do the work release
the GIL.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Numbered(Protocol):
    """Something with the number of a chunk."""

    @property
    def number(self) -> int:
        """The chunk's number."""


Chunk = TypeVar("Chunk", bound=Numbered)


def neighbours(chunks: Iterable[Chunk], most: int) -> Iterator[list[Chunk]]:
    """Group chunks whose numbers follow each other, at most ``most`` together: they are worked on
    and written at once.
    """
    group: list[Chunk] = []
    for chunk in chunks:
        if group and (chunk.number != group[-1].number + 1 or len(group) == most):
            yield group
            group = []
        group.append(chunk)
    if group:
        yield group


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Generator[Result, None, None]:
    """Yield ``work(item)`` for each item in order, with at most ``ahead`` items begun and not yet
    yielded.

    ``items`` is drawn in the calling thread. An exception in ``work`` or ``items`` is raised here,
    after which no further item is begun. One item or one thread is done in the calling thread,
    without starting any.
    """
    # Most calls of a run in which nothing changed have one item or none: threads, and the import
    # of what makes them, would be most of what they cost.
    from itertools import chain, islice

    source = iter(items)
    first = list(islice(source, 2))
    if threads < 2 or len(first) < 2:
        yield from map(work, chain(first, source))
        return
    from concurrent.futures import Future, ThreadPoolExecutor

    pool = ThreadPoolExecutor(threads)
    begun: deque[Future[Result]] = deque()
    try:
        for item in chain(first, source):
            begun.append(pool.submit(work, item))
            if len(begun) >= ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
