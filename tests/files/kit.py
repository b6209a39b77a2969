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
    path: Path, partition: int | str | None = None, seconds: float = 60
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


def must_have(
    image: Path,
    root: Path,
    coarse: int = 1,
    links: bool = False,
    partition: str | None = None,
    apart: tuple[str, ...] = (),
) -> None:
    """Whether an image has the files of a folder, times to so many nanoseconds, apart from some at
    its top.
    """
    raw = os.fsencode(root)
    with files_of(image, partition) as files:
        found = {one.path: one for _, one in files.walk(files.find(b"/"), told)}
        for name in apart:
            found.pop(b"/" + name.encode(), None)
        below = [path for path in all_below(raw) if path[1:].decode() not in apart]
        assert sorted(found) == below
        for path, one in found.items():
            about = os.lstat(raw + path)
            assert stat.S_IFMT(one.stat.mode) == stat.S_IFMT(about.st_mode), path
            if stat.S_ISLNK(about.st_mode):
                assert files.link(one.node) == os.readlink(raw + path), path
            if stat.S_ISREG(about.st_mode):
                assert one.stat.size == about.st_size, path
                assert one.stat.mtime // coarse == about.st_mtime_ns // coarse, path
                whole = bytearray(one.stat.size)
                for offset, data in files.contents(one):
                    whole[offset : offset + len(data)] = data
                assert whole == Path(os.fsdecode(raw + path)).read_bytes(), path
                assert not links or one.stat.links == about.st_nlink, path
