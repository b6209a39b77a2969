# SPDX-License-Identifier: GPL-2.0-or-later
"""The blocks that a parity file covers, and its own, as they are on the disk now."""

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress

from backup_vm.archive.parity.plan import Member, Plan
from backup_vm.archive.readers import Readers
from backup_vm.archive.storage import Storage
from backup_vm.errors import DamagedError


class Run(Readers):
    """Files laid one after another, read as one run of bytes, in which each begins at a block."""

    def __init__(self, storage: Storage, members: Sequence[Member], block_size: int) -> None:
        super().__init__(storage)
        self._members, self._size = members, block_size
        self._starts = [member.first for member in members]

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the run, zeros where files end. Raises DamagedError, FileNotFoundError."""
        parts, end = [], offset + length
        while offset < end:
            at = bisect_right(self._starts, offset // self._size) - 1
            member = self._members[at]
            within, ends = offset - member.first * self._size, member.end * self._size
            if offset >= ends:  # beyond the last
                parts.append(bytes(end - offset))
                break
            there = min(end, ends) - offset
            wanted = min(there, max(member.size - within, 0))
            part = self.of(member.name).read(within, wanted) if wanted else b""
            if len(part) != wanted:
                raise DamagedError(f"{self._storage.describe(member.name)} is shorter than it was")
            parts.append(part + bytes(there - wanted))
            offset += there
        self._storage.rate.spend(length)
        return b"".join(parts)


class Blocks(Run):
    """The blocks of a plan: of data, and from ``shape.blocks`` on of parity."""

    def __init__(self, storage: Storage, plan: Plan) -> None:
        super().__init__(storage, plan.members, plan.shape.block_size)
        self._plan = plan

    def block(self, number: int) -> bytes | None:
        """A block, if it can be read and is as it was."""
        size, of_parity = self._size, number - self._plan.shape.blocks
        with suppress(DamagedError, OSError):
            if of_parity < 0:
                raw = self.read(number * size, size)
            else:
                raw = self.of(self._plan.name).read(self._plan.parity_at(of_parity), size)
            if self._plan.matches(number, raw):
                return raw
        return None

    def lost(self, first: int, end: int) -> list[int]:
        """Which of these blocks are not as they were."""
        return [number for number in range(first, end) if self.block(number) is None]
