# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans: which files a parity file covers, how their blocks are laid out, and the checksum of each.

The files are laid one after another, each filled up with zeros to whole blocks, and the run of
blocks is cut into rows of equal width. A column of blocks, one of each row, is a code word: with
``parity_rows`` blocks of parity, as many of its blocks can be lost. So a loss of neighbouring
blocks, a row long or less, costs each code word one block.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property

from backup_vm.archive import naming
from backup_vm.archive.damage import damage
from backup_vm.archive.format import (
    CHECKSUM_SIZE,
    DIGEST_SIZE,
    PARITY_MEMBER,
    ParityFoot,
    ParityHead,
)
from backup_vm.archive.packs import checksum
from backup_vm.archive.storage import Reader, Storage
from backup_vm.errors import DamagedError

SUFFIX = ".parity"
BLOCK_SIZES = tuple(1 << power for power in range(12, 21))
"""4 KiB, what a disk loses at least, to 1 MiB."""
ROWS = 128
"""Rows of data at most. Each block of data costs one multiplication for each row of parity: with
twice the rows, and so twice the rows of parity for the same share, twice the time.
"""
BLOCKS = 1 << 14
"""Blocks of data up to which a smaller block is chosen."""
LARGEST_PLAN = 16 << 20
LARGEST_ROWS = 512 << 20
"""Bytes of parity in a file at most: as much is in memory while it is made. A pack may be a little
larger than this (see pack_size.LARGEST), so that it has a little less parity than it has bytes at
most.
"""
LARGEST_FILE = BLOCKS * BLOCK_SIZES[-1]
"""Bytes of a file above which it is not covered."""
_MOST = 256
"""Rows in all, as GF(2^8) has them."""
_PACK, _SESSION = 1, 2
_HEAD, _FOOT = ParityHead.length(), ParityFoot.length()


@dataclass(frozen=True)
class Member:
    """A file that is covered: its name, size, and where in the run its blocks begin and end."""

    name: str
    size: int
    first: int
    end: int


@dataclass(frozen=True)
class Shape:
    """How the blocks are laid out."""

    block_size: int
    rows: int
    parity_rows: int
    width: int
    blocks: int

    @classmethod
    def of(cls, sizes: Iterable[int], share: float) -> "Shape":
        """The one for files of these sizes, with at least so many bytes of parity for each byte,
        or as many as a file of parity may have.
        """
        sizes = list(sizes)
        block_size = BLOCK_SIZES[0]
        while (blocks := _blocks(sizes, block_size)) > BLOCKS and block_size < BLOCK_SIZES[-1]:
            block_size *= 2
        width = -(-blocks // ROWS)
        rows = -(-blocks // width)
        most = min(rows, LARGEST_ROWS // (width * block_size))
        parity_rows = min(math.ceil(rows * share - 1e-9), most)
        return cls(block_size, rows, max(parity_rows, 1), width, blocks)

    @property
    def parity_blocks(self) -> int:
        """Blocks of parity."""
        return self.parity_rows * self.width

    @property
    def share(self) -> float:
        """Parity for each byte of data."""
        return self.parity_rows / self.rows

    def possible(self) -> bool:
        """Whether a plan can be of this shape, whoever wrote it."""
        return (
            self.block_size in BLOCK_SIZES
            and 1 <= self.parity_rows <= self.rows
            and self.rows + self.parity_rows <= _MOST
            and self.parity_blocks * self.block_size <= LARGEST_ROWS
            and 0 < self.blocks <= self.rows * self.width
            and (self.rows - 1) * self.width < self.blocks
        )


def _blocks(sizes: Iterable[int], block_size: int) -> int:
    return sum(-(-size // block_size) for size in sizes)


def laid(files: Iterable[tuple[str, int]], block_size: int) -> Iterator[Member]:
    """Files (name and size) one after another."""
    at = 0
    for name, size in files:
        end = at + _blocks([size], block_size)
        yield Member(name, size, at, end)
        at = end


@dataclass(frozen=True)
class Plan:
    """What a parity file says of itself. ``checksums``: of the blocks of data, then of those of
    parity; ``intact``: whether both copies of the plan are there.
    """

    name: str
    shape: Shape
    members: tuple[Member, ...]
    checksums: bytes
    intact: bool = True

    @cached_property
    def names(self) -> frozenset[str]:
        """The files that are covered."""
        return frozenset(member.name for member in self.members)

    @property
    def payload(self) -> int:
        """Bytes of the files that are covered."""
        return sum(member.size for member in self.members)

    @property
    def length(self) -> int:
        """Bytes of the plan."""
        return plan_length(len(self.members), self.shape)

    def matches(self, block: int, contents: bytes | memoryview) -> bool:
        """Whether a block, of data or (from ``shape.blocks`` on) of parity, is as it was."""
        at = block * CHECKSUM_SIZE
        return checksum(contents) == self.checksums[at : at + CHECKSUM_SIZE]

    def parity_at(self, block: int) -> int:
        """Offset in the parity file of a block of parity, counted from 0."""
        return self.length + block * self.shape.block_size

    def build(self, archive: bytes) -> bytes:
        """The plan's bytes."""
        shape = self.shape
        head = ParityHead(
            archive,
            shape.block_size,
            shape.rows,
            shape.parity_rows,
            shape.width,
            shape.blocks,
            len(self.members),
        )
        members = (PARITY_MEMBER.pack(*_ids(one.name), one.size) for one in self.members)
        body = head.build() + b"".join(members) + self.checksums
        return body + hashlib.blake2b(body, digest_size=DIGEST_SIZE).digest()


def plan_length(members: int, shape: Shape) -> int:
    """Bytes of a plan."""
    checksums = (shape.blocks + shape.parity_blocks) * CHECKSUM_SIZE
    return _HEAD + members * PARITY_MEMBER.size + checksums + DIGEST_SIZE


def foot(plan: Plan) -> bytes:
    """What ends a parity file."""
    return ParityFoot(plan.length).build()


def _ids(name: str) -> tuple[int, bytes, int, bytes]:
    """What stands for a name: nobody can lead a reader elsewhere with it."""
    if naming.is_pack(name):
        return _PACK, bytes(16), 0, bytes.fromhex(name[9:41])
    volume, sequence = naming.volume_of(name), int(name[41:].partition("-")[0])
    return _SESSION, bytes.fromhex(volume), sequence, bytes.fromhex(naming.session_of(name))


def _name(kind: int, volume: bytes, sequence: int, identifier: bytes) -> str:
    text = identifier.hex()
    if kind == _PACK and not any(volume) and not sequence:
        return f"packs/{text[:2]}/{text}.pack"
    if kind == _SESSION:
        return f"volumes/{volume.hex()}/{sequence:010d}-{text}.session"
    raise ValueError("it covers a file of a kind that there is not")


def read(storage: Storage, name: str, archive: bytes) -> Plan:
    """The plan of a parity file, by whichever of its copies is whole; raise DamagedError.

    Everything in it may be hostile: nothing is allocated before it fits the file's own size.
    """
    with damage(storage, name, ""):
        size = storage.size(name)
        with closing(storage.reader(name)) as reader:
            found = []
            for at in _copies(reader, size):
                try:
                    found.append(_parse(reader, name, at, size, archive))
                except (ValueError, OSError, DamagedError) as error:
                    problem = str(error)
            if found and (len(found) < 2 or found[0] != found[1]):
                shape, members, checksums = found[0].shape, found[0].members, found[0].checksums
                return Plan(name, shape, members, checksums, intact=False)
    if not found:
        raise DamagedError(f"{storage.describe(name)} is no parity of this archive: {problem}")
    return found[0]


def _copies(reader: Reader, size: int) -> Sequence[int]:
    """Where the copies of the plan may begin; the second is told by the file's end alone."""
    try:
        length = ParityFoot.parse(reader.read(max(size - _FOOT, 0), _FOOT)).plan_length
    except (ValueError, OSError, DamagedError):
        length = -1
    return (0, size - _FOOT - length) if 0 < length < size - _FOOT else (0,)


def _parse(reader: Reader, name: str, at: int, size: int, archive: bytes) -> Plan:
    """A copy of the plan; raise ValueError where it is none."""
    head = ParityHead.parse(reader.read(at, _HEAD))
    if head.archive != archive:
        raise ValueError("it is of another archive")
    shape = Shape(head.block_size, head.rows, head.parity_rows, head.width, head.blocks)
    length = plan_length(head.members, shape)
    parity = shape.parity_blocks * shape.block_size
    if not shape.possible() or length > LARGEST_PLAN or size != 2 * length + parity + _FOOT:
        raise ValueError("its plan does not fit its size")
    raw = reader.read(at, length)
    body = memoryview(raw)[:-DIGEST_SIZE]
    if hashlib.blake2b(body, digest_size=DIGEST_SIZE).digest() != raw[-DIGEST_SIZE:]:
        raise ValueError("its plan has another checksum")
    rows_end = _HEAD + head.members * PARITY_MEMBER.size
    files = []
    for kind, volume, sequence, identifier, file_size in PARITY_MEMBER.iter_unpack(
        body[_HEAD:rows_end]
    ):
        if not 0 < file_size <= LARGEST_FILE:
            raise ValueError("it covers a file of an impossible size")
        files.append((_name(kind, volume, sequence, identifier), file_size))
    members = tuple(laid(files, shape.block_size))
    if not members or members[-1].end != shape.blocks or len(dict(files)) != len(files):
        raise ValueError("its files do not fit its blocks")
    return Plan(name, shape, members, bytes(body[rows_end:]))
