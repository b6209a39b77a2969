# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``thin_delta`` and ``thin_dump`` print, read as it comes: ranges in bytes, in bounded
memory.

Elements are described in thin_delta(8) and in the thin-provisioning-tools' documentation of the XML
format; numbers count blocks of the pool, ``data_block_size`` 512-byte sectors.
"""

import os
from collections.abc import Iterator
from xml.parsers.expat import ExpatError, ParserCreate

from wire.status import Code, Refused

_READ = 1 << 16
_CHANGED = frozenset({"different", "left_only", "right_only"})
_FRAME = frozenset({"diff", "same", "device", "def", "ref"})


class _Elements:
    """Collects ranges of blocks from the elements of interest."""

    def __init__(self) -> None:
        self.block = 0
        self.found: list[tuple[int, int]] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name in _CHANGED:
            self._add(int(attributes["begin"]), int(attributes["length"]))
        elif name == "range_mapping":
            self._add(int(attributes["origin_begin"]), int(attributes["length"]))
        elif name == "single_mapping":
            self._add(int(attributes["origin_block"]), 1)
        elif name == "superblock":
            self.block = int(attributes["data_block_size"]) * 512
        elif name not in _FRAME:  # it might stand for a change
            raise ValueError(f"unknown element {name}")

    def _add(self, begin: int, length: int) -> None:
        if self.block <= 0 or begin < 0 or length <= 0:
            raise ValueError("a range of nothing")
        if self.found and self.found[-1][1] == begin:
            self.found[-1] = (self.found[-1][0], begin + length)
        else:
            self.found.append((begin, begin + length))


def ranges(pipe: int, what: str) -> Iterator[tuple[int, int]]:
    """Ranges that differ (thin_delta) or are mapped (thin_dump), in order, adjoining ones joined.
    Reads ``pipe`` to its end.
    """
    elements = _Elements()
    parser = ParserCreate()
    parser.StartElementHandler = elements.start
    try:
        while data := os.read(pipe, _READ):
            parser.Parse(data, False)
            # The last may continue in what is read next.
            whole, elements.found = elements.found[:-1], elements.found[-1:]
            yield from ((begin * elements.block, end * elements.block) for begin, end in whole)
        parser.Parse(b"", True)
    except (ExpatError, KeyError, ValueError) as error:
        raise Refused(Code.SOURCE_FAILED, f"{what} printed invalid output: {error}") from None
    yield from ((begin * elements.block, end * elements.block) for begin, end in elements.found)
