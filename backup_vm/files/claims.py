# SPDX-License-Identifier: GPL-2.0-or-later
"""Which file has which part of an image, of file systems in which no two files share any."""

from array import array
from collections.abc import Iterator

from backup_vm.files.answers import NOWHERE, Extents

KINDS = frozenset({"vfat", "exfat", "ntfs"})
"""File systems without shared contents, for which there is no checker that runs everywhere."""
MOST = 2_000_000
"""Parts that are remembered: 32 MB, and their files' paths."""


class Claims:
    """The parts of all files, each file once whatever names it has."""

    def __init__(self) -> None:
        self._parts = array("Q")
        """Of each part where it begins, and where it ends."""
        self._owners = array("L")
        self._paths: list[bytes] = []
        self._nodes: set[int] = set()
        self.too_many = False
        """Whether not all are remembered."""

    def add(self, path: bytes, node: int, extents: Extents) -> None:
        """A file, and where its contents are."""
        if node in self._nodes or self.too_many:
            return
        if len(self._nodes) + len(self._owners) + len(extents) > MOST:
            self.too_many = True
            return
        self._nodes.add(node)
        self._paths.append(path)
        for _, length, place in extents:
            if place != NOWHERE:
                self._parts.extend((place, place + length))
                self._owners.append(len(self._paths) - 1)

    def twice(self) -> Iterator[tuple[bytes, bytes]]:
        """Files of which one has a part of the other one, each such file once."""
        parts, told = self._parts, set[int]()
        reached, holder = 0, 0
        order = sorted(range(len(self._owners)), key=lambda one: parts[2 * one])
        for at in order:
            start, end, owner = parts[2 * at], parts[2 * at + 1], self._owners[at]
            if start < reached and owner not in told:
                told.add(owner)
                yield self._paths[owner], self._paths[holder]
            if end > reached:
                reached, holder = end, owner
