# SPDX-License-Identifier: GPL-2.0-or-later
"""The Reed-Solomon code, by the library zfec: any ``rows`` of a code word's bytes give all others.

It mends what is known to be lost, and finds nothing: which blocks are lost, their checksums say.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from backup_vm.archive.packs import checksum
from backup_vm.archive.parity.plan import Shape
from backup_vm.errors import SparsebakError

AT_ONCE = 64 << 20
"""Bytes of data that are encoded together: each row's part of them is read at one go, and a disk
that turns must not seek for every block.
"""


def _zfec() -> Any:
    try:
        import zfec
    except ImportError:
        raise SparsebakError(
            "parity needs the Python module zfec, which is not installed",
            "install it: python3-zfec (Debian), or pip install zfec",
        ) from None
    return zfec


def require() -> None:
    """Raise SparsebakError where the library is missing."""
    _zfec()


def encode(shape: Shape, read: Callable[[int, int], bytes]) -> tuple[bytes, list[memoryview]]:
    """The checksums of all blocks of data and of parity, and the rows of parity.

    ``read``: bytes of the run of blocks from an offset on, zeros beyond its end.
    """
    encoder = _zfec().Encoder(shape.rows, shape.rows + shape.parity_rows)
    new = list(range(shape.rows, shape.rows + shape.parity_rows))
    size, row = shape.block_size, shape.width * shape.block_size
    step = max(AT_ONCE // (shape.rows * size), 1) * size
    parity = [bytearray(row) for _ in new]
    checksums = [b""] * (shape.rows * shape.width)
    for at in range(0, row, step):
        length = min(step, row - at)
        parts = [read(number * row + at, length) for number in range(shape.rows)]
        for number, part in enumerate(parts):
            first = number * shape.width + at // size
            checksums[first : first + length // size] = blockwise(part, size)
        for whole, part in zip(parity, _encoded(encoder, parts, new), strict=True):
            whole[at : at + length] = part
    of_parity = [one for row in parity for one in blockwise(row, size)]
    return b"".join(checksums[: shape.blocks] + of_parity), [memoryview(row) for row in parity]


def _encoded(encoder: Any, parts: Sequence[bytes], new: Sequence[int]) -> Iterator[bytes]:
    """Parity of parts of all rows, half of them on each of two threads: zfec lets other threads
    run, and gives twice the rate so.
    """
    from concurrent.futures import ThreadPoolExecutor

    middle = len(parts[0]) // 2
    halves = [[memoryview(part)[:middle] for part in parts]] if middle else []
    halves.append([memoryview(part)[middle:] for part in parts])
    with ThreadPoolExecutor(len(halves)) as pool:
        done = list(pool.map(lambda half: encoder.encode(half, new), halves))
    return (b"".join(pieces) for pieces in zip(*done, strict=True))


def blockwise(part: bytes | bytearray, size: int) -> Iterator[bytes]:
    """The checksum of each block."""
    view = memoryview(part)
    return (checksum(view[at : at + size]) for at in range(0, len(view), size))


def decode(shape: Shape, there: Mapping[int, bytes]) -> list[bytes]:
    """A column's blocks of data, from ``rows`` of its blocks, each by the number of its row (those
    of parity come after those of data).
    """
    if len(there) != shape.rows:
        raise ValueError(f"{len(there)} blocks, where {shape.rows} are needed")
    # zfec wants a block of data that is there to stand at its own place.
    spare = sorted(row for row in there if row >= shape.rows)
    order = [row if row in there else spare.pop() for row in range(shape.rows)]
    decoder = _zfec().Decoder(shape.rows, shape.rows + shape.parity_rows)
    return list(decoder.decode([there[row] for row in order], order))
