# SPDX-License-Identifier: GPL-2.0-or-later
"""What is in an index of names, for whoever has a key: rows of a tree, each with what is said of a
file, in blocks that are sealed with a key of the session's deduplication domain.

Rows are in the order of a walk (a folder, what is in it by name, what is in folders below it right
behind them), and each says how deep it is, so that a path needs no more than its last name. Of a
segment that builds on another one there are only those that differ, and the folders that lead to
them.
"""

import re
import struct
from collections.abc import Callable, Container, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from heapq import merge
from itertools import accumulate, groupby
from operator import itemgetter
from typing import NamedTuple

from backup_vm.archive.names_format import (
    BLOCK_LENGTH,
    GONE,
    IS,
    LEADS,
    LONGEST_ROWS,
    NODE_SIZE,
    ROWS_HEAD_SIZE,
    NamesAbout,
    NamesBound,
    RowsHead,
    SegmentHead,
)
from backup_vm.files.session import DEEPEST, Found, joined
from wire.chunks import DomainKeys, NotAuthentic, derive, open_bytes, seal_bytes

LABEL = b"sparsebak/2 names"
COLUMNS = "BHHIIIIIQqIqI"
"""Codes of the columns before ``node``, as NamesRows declares them."""
WIDTH = struct.calcsize("<" + COLUMNS) + NODE_SIZE
SECOND = 10**9


class About(NamedTuple):
    """What an index says of a file; times are nanoseconds since 1970."""

    mode: int
    links: int
    uid: int
    gid: int
    major: int
    minor: int
    size: int
    mtime: int
    ctime: int
    node: int

    @classmethod
    def of(cls, found: Found) -> "About":
        """As a reader of files says it."""
        stat = found.stat
        owner = (stat.mode, stat.links, stat.uid, stat.gid, stat.major, stat.minor)
        return cls(*owner, stat.size, stat.mtime, stat.ctime, found.node)


class Row(NamedTuple):
    """A path from the root on, without a slash before it; ``about`` is None where it is gone."""

    path: bytes
    about: About | None


def order(path: bytes) -> bytes:
    """What paths are sorted by in a walk."""
    return path.replace(b"/", b"\0")


class Unusable(Exception):
    """A segment that is not authentic, or malformed; the text says why."""


@dataclass(frozen=True)
class Sealing:
    """What seals and opens the blocks of a volume's segments."""

    archive: bytes
    volume_id: bytes
    key: bytes

    @classmethod
    def of(cls, archive: bytes, volume_id: bytes, keys: DomainKeys) -> "Sealing":
        """With the keys of a deduplication domain."""
        return cls(archive, volume_id, derive(keys.sealing, LABEL))

    def _bound(self, head: SegmentHead, number: int) -> bytes:
        ids = (head.session, head.id, head.base)
        return NamesBound(self.archive, self.volume_id, *ids, number).build()

    def seal(self, head: SegmentHead, number: int, text: bytes) -> bytes:
        """A block, behind its length."""
        sealed = seal_bytes(self.key, text, self._bound(head, number))
        return BLOCK_LENGTH.pack(len(sealed)) + sealed

    def open(self, head: SegmentHead, blocks: Iterable[bytes]) -> Generator[bytes, None, None]:
        """The texts of sealed blocks; raise Unusable."""
        try:
            for number, sealed in enumerate(blocks):
                yield open_bytes(self.key, sealed, self._bound(head, number))
        except NotAuthentic as error:
            raise Unusable(f"a block {error}") from None


@dataclass(frozen=True)
class Link:
    """A segment to be read: its head, and what gives its sealed blocks from the first one on, which
    may raise DamagedError.
    """

    head: SegmentHead
    blocks: Callable[[], Iterator[bytes]]

    def about(self, sealing: Sealing) -> NamesAbout:
        """What it is of; raise Unusable."""
        with closing(sealing.open(self.head, self.blocks())) as texts:
            return _about(next(texts, b""), self.head)

    def texts(self, sealing: Sealing) -> Iterator[bytes]:
        """Its blocks of rows, as they are when they are not compressed; raise Unusable, also where
        there are fewer than there must be.
        """
        with closing(sealing.open(self.head, self.blocks())) as texts:
            about = _about(next(texts, b""), self.head)
            count = 1
            for text in texts:
                yield _expanded(text)
                count += 1
            if count != about.blocks:
                raise Unusable("it has another number of blocks than it says")


def _about(text: bytes, head: SegmentHead) -> NamesAbout:
    try:
        about = NamesAbout.parse(text)
    except ValueError as error:
        raise Unusable(str(error)) from None
    if about.blocks != head.blocks:
        raise Unusable("it has another number of blocks than it says")
    return about


def _expanded(text: bytes) -> bytes:
    import zstandard

    try:
        size = zstandard.get_frame_parameters(text).content_size
        if not ROWS_HEAD_SIZE <= size <= LONGEST_ROWS:
            raise Unusable("a block claims an impossible length")
        return bytes(zstandard.ZstdDecompressor().decompress(text, max_output_size=LONGEST_ROWS))
    except zstandard.ZstdError as error:
        raise Unusable(f"a block does not decompress: {error}") from None


def _parts(rows: bytes) -> tuple[int, int]:
    """Number of rows of a block, and where its names begin; raise Unusable."""
    try:
        head = RowsHead.parse(rows[:ROWS_HEAD_SIZE])
    except ValueError as error:
        raise Unusable(str(error)) from None
    at = ROWS_HEAD_SIZE + head.count * WIDTH
    if at + head.text_length != len(rows):
        raise Unusable("a block has another length than it says")
    return head.count, at


def rows_of(rows: bytes, wanted: Container[int] | None = None) -> Iterator[Row]:
    """The rows of a block that say something, in order; of these the ``wanted`` ones, by their
    numbers. Raises Unusable.
    """
    count, at = _parts(rows)
    names = rows[at:].split(b"\0")
    if len(names) != count + 1 or names.pop():
        raise Unusable("a block has another number of names than of rows")
    if b"" in names or rows.find(b"/", at) >= 0:
        raise Unusable("a block has a name that no file can have")
    starts, nodes = _starts(count), at - count * NODE_SIZE
    what, depths = (struct.unpack_from(f"<{count}{COLUMNS[i]}", rows, starts[i]) for i in (0, 1))
    cells = [
        (struct.Struct("<" + code), start)
        for code, start in zip(COLUMNS[2:], starts[2:], strict=False)
    ]
    if count and max(depths) > DEEPEST + 1:
        raise Unusable("a block has a name in no place")
    last, before = [0] * (DEEPEST + 2), 0  # the last row of each depth; the depth of the last row
    for number, depth in enumerate(depths):
        if not 0 < depth <= before + 1:
            raise Unusable("a block has a name in no place")
        last[depth], before = number, depth
        if what[number] == LEADS or (wanted is not None and number not in wanted):
            continue
        path = b"/".join([names[one] for one in last[1 : depth + 1]])
        if what[number] == GONE:
            yield Row(path, None)
        elif what[number] == IS:
            mode, links, uid, gid, major, minor, size, *times = (
                cell.unpack_from(rows, start + number * cell.size)[0] for cell, start in cells
            )
            mtime, ctime = (times[i] * SECOND + times[i + 1] for i in (0, 2))
            node = rows[nodes + number * NODE_SIZE : nodes + (number + 1) * NODE_SIZE]
            about = (mode, links, uid, gid, major, minor, size, mtime, ctime)
            yield Row(path, About(*about, int.from_bytes(node, "little")))
        else:
            raise Unusable("a row says what no row says")


def _starts(count: int) -> list[int]:
    """Where each column begins in a block of so many rows, and the one of nodes."""
    sizes = (struct.calcsize("<" + code) * count for code in COLUMNS)
    return list(accumulate(sizes, initial=ROWS_HEAD_SIZE))


def named(rows: bytes, pattern: re.Pattern[bytes]) -> Iterator[Row]:
    """Those rows of a block whose last name, between two zeros, the pattern finds. Where it finds
    none this takes next to nothing. Raises Unusable.
    """
    _, at = _parts(rows)
    names = b"\0" + rows[at:]
    numbers, number, reached = set(), 0, 1
    for hit in pattern.finditer(names):
        number += names.count(b"\0", reached, hit.start())
        reached = hit.start()
        numbers.add(number)
    return rows_of(rows, numbers) if numbers else iter(())


def found_path(row: bytes) -> bytes:
    """A row's path as it is shown."""
    return joined(b"/", row)


def merged(links: list[Link], sealing: Sealing) -> Iterator[Row]:
    """All that there is where the last of these segments leads to, in order; a row of a later one
    is in the place of one of an earlier. Raises Unusable.
    """

    def keyed(link: Link, age: int) -> Iterator[tuple[bytes, int, Row]]:
        for text in link.texts(sealing):
            for row in rows_of(text):
                yield order(row.path), age, row

    last = None
    streams = [keyed(link, -age) for age, link in enumerate(links)]
    for key, _, row in merge(*streams, key=itemgetter(0, 1)):
        if key != last and row.about is not None:
            yield row
        last = key


def different(old: Iterable[Row], new: Iterable[Row]) -> Iterator[Row]:
    """What leads from one tree to another, both in order."""

    def keyed(rows: Iterable[Row], late: bool) -> Iterator[tuple[bytes, bool, Row]]:
        return ((order(row.path), late, row) for row in rows)

    both = merge(keyed(old, False), keyed(new, True), key=itemgetter(0))
    for _, group in groupby(both, itemgetter(0)):
        rows = {late: row for _, late, row in group}
        if True not in rows:
            yield Row(rows[False].path, None)
        elif rows.get(False) != rows[True]:
            yield rows[True]
