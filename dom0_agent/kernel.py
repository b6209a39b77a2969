# SPDX-License-Identifier: GPL-2.0-or-later
"""Structures of Linux's ioctl calls, in the machine's own order of bytes, as ``include/uapi/linux``
has them. They are declared as those of wire.layout are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from dom0_agent.compiled import COMPILED
from wire.layout import Structure

if TYPE_CHECKING:
    from construct import Bytes, Int8un, Int16un, Int32un, Int64un


class FiemapHead(Structure, compiled=COMPILED):
    """``struct fiemap``, of fiemap.h; FiemapExtent follow."""

    start: Annotated[int, Int64un * "first byte of the file that is asked about"]
    span: Annotated[int, Int64un * "bytes from there on"]
    flags: Annotated[int, Int32un * "how to look"]
    mapped: Annotated[int, Int32un * "extents that are returned"]
    room: Annotated[int, Int32un * "extents that there is room for"]
    reserved: Annotated[int, Int32un]


class FiemapExtent(Structure, compiled=COMPILED):
    """``struct fiemap_extent``, of fiemap.h."""

    logical: Annotated[int, Int64un * "offset in the file"]
    physical: Annotated[int, Int64un * "place on the disk"]
    span: Annotated[int, Int64un * "bytes"]
    reserved: Annotated[bytes, Bytes(16)]
    flags: Annotated[int, Int32un * "what is not certain of it"]
    reserved_more: Annotated[bytes, Bytes(12)]


class SearchKey(Structure, compiled=COMPILED):
    """``struct btrfs_ioctl_search_key``, of btrfs.h: first and last of what is looked for."""

    tree: Annotated[int, Int64un * "0 for the subvolume that the file is in"]
    first_object: Annotated[int, Int64un * "inode"]
    last_object: Annotated[int, Int64un * "inode"]
    first_offset: Annotated[int, Int64un]
    last_offset: Annotated[int, Int64un]
    first_transaction: Annotated[int, Int64un]
    last_transaction: Annotated[int, Int64un]
    first_kind: Annotated[int, Int32un * "kind of the items"]
    last_kind: Annotated[int, Int32un]
    count: Annotated[int, Int32un * "items wanted, then items found"]
    reserved: Annotated[bytes, Bytes(36)]


class SearchArguments(Structure, compiled=COMPILED):
    """``struct btrfs_ioctl_search_args_v2``, of btrfs.h; ItemHead and items follow."""

    key: SearchKey
    room: Annotated[int, Int64un * "bytes there are for what is found"]


class ItemHead(Structure, compiled=COMPILED):
    """``struct btrfs_ioctl_search_header``, of btrfs.h, before each item."""

    transaction: Annotated[int, Int64un]
    object: Annotated[int, Int64un]
    offset: Annotated[int, Int64un * "of an extent, in the file"]
    kind: Annotated[int, Int32un]
    item_length: Annotated[int, Int32un * "bytes of the item, which follows"]


class FileExtent(Structure, compiled=COMPILED):
    """First part of ``struct btrfs_file_extent_item``, of btrfs_tree.h."""

    generation: Annotated[int, Int64un * "when it was written"]
    span: Annotated[int, Int64un * "bytes of all of it, decompressed"]
    compression: Annotated[int, Int8un]
    encryption: Annotated[int, Int8un]
    other: Annotated[int, Int16un * "other encoding"]
    kind: Annotated[int, Int8un * "in the tree, on the disk, or allocated alone"]


class ExtentPlace(Structure, compiled=COMPILED):
    """Second part of it, of what is not in the tree."""

    place: Annotated[int, Int64un * "on the disk"]
    disk_span: Annotated[int, Int64un * "bytes there"]
    offset: Annotated[int, Int64un * "within it, decompressed, where the file's bytes begin"]
    span: Annotated[int, Int64un * "bytes of the file"]


class FileAttributes(Structure, compiled=COMPILED):
    """``struct fsxattr``, of fs.h."""

    flags: Annotated[int, Int32un]
    extent_size: Annotated[int, Int32un]
    extents: Annotated[int, Int32un]
    project: Annotated[int, Int32un * "that quotas count the file to"]
    copy_extent_size: Annotated[int, Int32un]
    reserved: Annotated[bytes, Bytes(8)]


class ByteRange(Structure, compiled=COMPILED):
    """What BLKDISCARD and BLKZEROOUT take, of fs.h."""

    start: Annotated[int, Int64un]
    span: Annotated[int, Int64un]
