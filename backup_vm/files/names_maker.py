# SPDX-License-Identifier: GPL-2.0-or-later
"""Making a segment of an index of names; see names."""

import struct
from collections.abc import Callable, Iterator
from typing import IO

from backup_vm.archive.names_format import (
    BLOCK_LENGTH,
    BY_DEFAULT,
    GONE,
    IS,
    LEADS,
    NODE_SIZE,
    NamesAbout,
    RowsHead,
    SegmentHead,
)
from backup_vm.files.answers import FileSystemError
from backup_vm.files.names import COLUMNS, SECOND, WIDTH, About, Link, Sealing

_FULL = 1 << 20
"""Bytes of rows from which on a block is complete."""
_LEVEL = 9


class Packer:
    """Makes blocks of rows, which ``put`` takes, compressed."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        self._put = put
        self.rows = 0
        """Rows that are no context, so far."""
        self._begin()

    def _begin(self) -> None:
        self._columns: list[list[int]] = [[] for _ in COLUMNS]
        self._nodes, self._names = bytearray(), bytearray()
        self._stack: list[bytes] = []

    def add(self, path: bytes, about: About | None) -> None:
        """A row, in order; the folders that lead to it are added by themselves."""
        parts = path.split(b"/")
        same = 0
        for one, other in zip(parts[:-1], self._stack, strict=False):
            if one != other:
                break
            same += 1
        for depth in range(same, len(parts) - 1):
            self._row(LEADS, depth + 1, parts[depth], _NOTHING)
        self._row(GONE if about is None else IS, len(parts), parts[-1], about or _NOTHING)
        self._stack = parts
        self.rows += 1
        if len(self._names) + len(self._columns[0]) * WIDTH >= _FULL:
            self.finish()

    def _row(self, what: int, depth: int, name: bytes, about: About) -> None:
        mtime, ctime = divmod(about.mtime, SECOND), divmod(about.ctime, SECOND)
        for column, value in zip(
            self._columns, (what, depth, *about[:7], *mtime, *ctime), strict=True
        ):
            column.append(value)
        self._nodes += about.node.to_bytes(NODE_SIZE, "little")
        self._names += name + b"\0"

    def finish(self) -> None:
        """Give what is left."""
        import zstandard

        count = len(self._columns[0])
        if not count:
            return
        packed = (
            struct.pack(f"<{count}{code}", *column)
            for code, column in zip(COLUMNS, self._columns, strict=True)
        )
        head = RowsHead(count, len(self._names)).build()
        rows = b"".join([head, *packed, self._nodes, self._names])
        self._put(zstandard.ZstdCompressor(level=_LEVEL).compress(rows))
        self._begin()


_NOTHING = About(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


class Made:
    """A segment that was made and is not stored yet: sealed, in a file without a name. Rows first,
    then ``finish``.
    """

    def __init__(self, sealing: Sealing, session: bytes, id: bytes, base: bytes, spool: IO[bytes]):
        self._sealing, self._spool = sealing, spool
        self._unfinished = SegmentHead(session, id, base, 0, 0)
        self._blocks = 1
        self.packer = Packer(self._put)
        self.head, self._first = self._unfinished, b""
        self.troubles = 0

    def _put(self, text: bytes) -> None:
        self._spool.write(self._sealing.seal(self._unfinished, self._blocks, text))
        self._blocks += 1

    def finish(self, partition: int, logical: str, by_default: bool, troubles: int) -> None:
        """All rows are there. Raises FileSystemError for a name that is too long."""
        self.packer.finish()
        flags, self.troubles = BY_DEFAULT * by_default, troubles
        counts = (self._blocks, self.packer.rows, troubles)
        try:
            text = NamesAbout(*counts, flags, partition, logical).build()
        except ValueError as error:
            raise FileSystemError(f"no index of it can be made: {error}") from None
        self._first = self._sealing.seal(self._unfinished, 0, text)
        length = len(self._first) + self._spool.tell()
        one = self._unfinished
        self.head = SegmentHead(one.session, one.id, one.base, self._blocks, length)

    def parts(self) -> Iterator[bytes]:
        """The bytes of the segment, as they are to be in a file."""
        yield self.head.build() + self._first
        self._spool.seek(0)
        while part := self._spool.read(1 << 20):
            yield part

    def link(self) -> Link:
        """The segment, as one that is stored is given to readers."""
        return Link(self.head, self._sealed)

    def _sealed(self) -> Iterator[bytes]:
        size = BLOCK_LENGTH.size
        yield self._first[size:]
        at = 0
        for _ in range(self._blocks - 1):
            self._spool.seek(at)
            (length,) = BLOCK_LENGTH.unpack(self._spool.read(size))
            yield self._spool.read(length)
            at += size + length

    def close(self) -> None:
        """Give back what it takes."""
        self._spool.close()
