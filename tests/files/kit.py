# SPDX-License-Identifier: GPL-2.0-or-later
"""Files out of an image that is in no archive, and what two trees must have in common."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backup_vm.files.parser import Parser
from backup_vm.files.session import SessionFiles

BLOCK = 1 << 16


class ImageFile:
    """What LazyImage is to the files of a session."""

    chunk_size = 128 << 10

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._descriptor).st_size
        self.asked: set[int] = set()
        """Blocks of 4 KiB that were read."""

    def read(self, offset: int, length: int) -> bytes:
        self.asked.update(range(offset // 4096, (offset + length - 1) // 4096 + 1))
        return os.pread(self._descriptor, length, offset)

    def close(self) -> None:
        os.close(self._descriptor)


@contextmanager
def files_of(
    path: Path, partition: int | None = None, seconds: float = 60
) -> Iterator[SessionFiles]:
    image = ImageFile(path)
    try:
        with Parser(seconds) as parser:
            yield SessionFiles(parser, image, "it", partition)
    finally:
        image.close()


def told(path: bytes, text: str) -> None:
    raise AssertionError((path, text))


def attributes_of(path: bytes) -> dict[str, bytes]:
    """Extended attributes, by the kernel."""
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
        if not name.startswith("trusted.SGI_ACL")  # XFS has ACLs under both names
    }


def said(path: bytes) -> tuple[object, ...]:
    """What a tree's file is, by the kernel."""
    about = os.lstat(path)
    kind = stat.S_IFMT(about.st_mode)
    size = 0 if kind == stat.S_IFDIR else about.st_size
    links = 0 if kind == stat.S_IFDIR else about.st_nlink
    rest = (os.readlink(path),) if kind == stat.S_IFLNK else ()
    device = about.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
    return (
        about.st_mode, about.st_uid, about.st_gid, size, links, device, *rest
    )  # fmt: skip


def all_below(root: bytes) -> list[bytes]:
    return sorted(
        (folder + b"/" + name)[len(root) :]
        for folder, folders, names in os.walk(root)
        for name in folders + names
    )


def must_be_same(
    one: Path, other: Path, times: bool = True, attributes: bool = True, holes: bool = True
) -> None:
    """Whether two trees have the same files, in all that cp keeps."""
    left, right = os.fsencode(one), os.fsencode(other)
    below = all_below(left)
    assert below == all_below(right)
    names: dict[bytes, set[tuple[tuple[int, int], int]]] = {}
    for path in below:
        assert said(left + path) == said(right + path), path
        here, there = os.lstat(left + path), os.lstat(right + path)
        if attributes:
            assert attributes_of(left + path) == attributes_of(right + path), path
        if times:
            assert here.st_mtime_ns == there.st_mtime_ns, path
        if stat.S_ISREG(here.st_mode):
            names.setdefault(path, set()).add(((here.st_dev, here.st_ino), there.st_ino))
            with open(left + path, "rb") as first, open(right + path, "rb") as second:
                while block := first.read(BLOCK):
                    assert block == second.read(BLOCK), path
            if holes and path.endswith((b"/sparse", b"/hole")):
                assert there.st_blocks * 512 < here.st_size // 4, path
    inodes = {pair for pairs in names.values() for pair in pairs}
    assert len({a for a, _ in inodes}) == len({b for _, b in inodes}) == len(inodes)
