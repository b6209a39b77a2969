# SPDX-License-Identifier: GPL-2.0-or-later
"""A file as it was when its parity was made: by the blocks of it that are left, and others that
give those that are lost.
"""

import io
from collections.abc import Iterator
from typing import BinaryIO, cast

from backup_vm.archive.parity import code
from backup_vm.archive.parity.blocks import Blocks
from backup_vm.archive.parity.plan import Member, Plan
from backup_vm.archive.storage import Reader, Storage
from backup_vm.errors import DamagedError
from backup_vm.rate import Rate
from common.override import override


def recovered(plan: Plan, blocks: Blocks, member: Member) -> dict[int, bytes] | None:
    """The blocks of a file that are lost, by their numbers; None where too much is lost."""
    shape = plan.shape
    lost = set(blocks.lost(member.first, member.end))
    found: dict[int, bytes] = {}
    for column in sorted({number % shape.width for number in lost}):
        there: dict[int, bytes] = {}
        for row in range(shape.rows + shape.parity_rows):
            number = row * shape.width + column
            if row >= shape.rows:
                contents = blocks.block(shape.blocks + number - shape.rows * shape.width)
            else:
                beyond = number >= shape.blocks
                contents = bytes(shape.block_size) if beyond else blocks.block(number)
            if contents is not None:
                there[row] = contents
            if len(there) == shape.rows:
                break
        else:
            return None
        for row, contents in enumerate(code.decode(shape, there)):
            number = row * shape.width + column
            if number in lost:
                if not plan.matches(number, contents):
                    return None
                found[number] = contents
    return found


class Mended(Reader):
    """A file as it was when its parity was made: blocks that are still so, and others from
    ``found``.
    """

    def __init__(self, blocks: Blocks, plan: Plan, member: Member, found: dict[int, bytes]) -> None:
        self._blocks, self._plan, self._member, self._found = blocks, plan, member, found
        self._last: tuple[int, bytes] = -1, b""

    def block(self, number: int) -> bytes:
        """A block of the file, without what fills up the last one."""
        if self._last[0] != number:
            raw = self._found.get(number) or self._blocks.block(number)
            if raw is None:
                raise DamagedError("a block that could be read cannot be read any more")
            self._last = number, raw
        left = self._member.size - (number - self._member.first) * self._plan.shape.block_size
        return self._last[1][:left]

    def whole(self) -> Iterator[bytes]:
        """All of it, by blocks."""
        return map(self.block, range(self._member.first, self._member.end))

    @override
    def read(self, offset: int, length: int) -> bytes:
        size = self._plan.shape.block_size
        parts, end = [], min(offset + length, self._member.size)
        while 0 <= offset < end:
            number, within = divmod(offset, size)
            part = self.block(self._member.first + number)[within : within + end - offset]
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    @override
    def close(self) -> None:
        """Its blocks are closed by whoever opened them."""


class View:
    """As much of a storage as checks of one file use, which has a mended file in it."""

    def __init__(self, storage: Storage, mended: Mended, size: int) -> None:
        self._storage, self._mended, self._size = storage, mended, size
        self.rate = Rate()

    def describe(self, name: str) -> str:
        """Its place, for people."""
        return self._storage.describe(name)

    def size(self, name: str) -> int:
        """Its bytes when it was whole."""
        return self._size

    def reader(self, name: str) -> Reader:
        """The mended file."""
        return self._mended

    def open(self, name: str) -> BinaryIO:
        """A copy of it, which has a descriptor."""
        scratch = self._storage.workspace.scratch()
        for part in self._mended.whole():
            scratch.write(part)
        scratch.flush()
        scratch.seek(0)
        return cast(io.BufferedReader, scratch)
