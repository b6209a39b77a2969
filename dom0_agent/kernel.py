# SPDX-License-Identifier: GPL-2.0-or-later
"""Structures of Linux's ioctl calls, and of ZFS, in the machine's own order of bytes, as
``include/uapi/linux`` has them. They are declared as those of wire.layout are.
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


class TreeLookup(Structure, compiled=COMPILED):
    """``struct btrfs_ioctl_ino_lookup_args``, of btrfs.h: which subvolume an open file is in."""

    tree: Annotated[int, Int64un * "0 to ask for it, then its id"]
    object: Annotated[int, Int64un * "the subvolume's own folder"]
    name: Annotated[bytes, Bytes(4080)]


class InodeBegin(Structure, compiled=COMPILED):
    """Beginning of ``struct btrfs_inode_item``, of btrfs_tree.h."""

    generation: Annotated[int, Int64un * "when it was made"]


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


class FileSpace(Structure, compiled=COMPILED):
    """``struct space_resv``, of falloc.h."""

    kind: Annotated[int, Int16un]
    whence: Annotated[int, Int16un * "0: from the file's beginning"]
    gap: Annotated[bytes, Bytes(4)]
    start: Annotated[int, Int64un]
    span: Annotated[int, Int64un]
    reserved: Annotated[bytes, Bytes(24)]


class ZvolName(Structure, compiled=COMPILED):
    """What BLKZNAME gives, of OpenZFS' ``zfs_ioctl.h``: the dataset that a device stands for."""

    name: Annotated[bytes, Bytes(256) * "ends at the first zero"]


class StreamRecord(Structure, compiled=COMPILED):
    """``dmu_replay_record_t``, of OpenZFS' ``zfs_ioctl.h``: one record of a stream of ``zfs send``;
    its payload follows.
    """

    kind: Annotated[int, Int32un]
    head_payload: Annotated[int, Int32un * "bytes that follow the first record"]
    body: Annotated[bytes, Bytes(304) * "depends on the kind"]


class StreamBegin(Structure, compiled=COMPILED):
    """``struct drr_begin``."""

    magic: Annotated[int, Int64un]
    version: Annotated[int, Int64un * "1 in the lowest two bits: one stream, of two snapshots"]
    created: Annotated[int, Int64un]
    kind: Annotated[int, Int32un * "of the dataset"]
    flags: Annotated[int, Int32un]
    new_guid: Annotated[int, Int64un]
    old_guid: Annotated[int, Int64un]
    name: Annotated[bytes, Bytes(256)]


class StreamObject(Structure, compiled=COMPILED):
    """Beginning of ``struct drr_object``."""

    object: Annotated[int, Int64un]
    kind: Annotated[int, Int32un]
    bonus_kind: Annotated[int, Int32un]
    block: Annotated[int, Int32un * "bytes of a block"]
    bonus: Annotated[int, Int32un * "bytes that follow, filled up to a multiple of 8"]
    reserved: Annotated[bytes, Bytes(4)]
    raw_bonus: Annotated[int, Int32un * "bytes that follow instead, if not 0"]


class StreamWrite(Structure, compiled=COMPILED):
    """``struct drr_write``."""

    object: Annotated[int, Int64un]
    kind: Annotated[int, Int32un]
    reserved: Annotated[int, Int32un]
    offset: Annotated[int, Int64un]
    span: Annotated[int, Int64un * "bytes of the object, which follow unless compressed"]
    new_guid: Annotated[int, Int64un]
    checksum: Annotated[bytes, Bytes(2)]
    compression: Annotated[int, Int8un * "0 for none"]
    key: Annotated[bytes, Bytes(45)]
    compressed: Annotated[int, Int64un * "bytes that follow, if compressed"]


class StreamFree(Structure, compiled=COMPILED):
    """``struct drr_free``; ``struct drr_freeobjects`` is the same without the object."""

    object: Annotated[int, Int64un]
    offset: Annotated[int, Int64un]
    span: Annotated[int, Int64un * "all ones: to the end"]


class StreamEmbedded(Structure, compiled=COMPILED):
    """``struct drr_write_embedded``."""

    object: Annotated[int, Int64un]
    offset: Annotated[int, Int64un]
    span: Annotated[int, Int64un]
    new_guid: Annotated[int, Int64un]
    how: Annotated[bytes, Bytes(8)]
    bytes: Annotated[int, Int32un]
    compressed: Annotated[int, Int32un * "bytes that follow, filled up to a multiple of 8"]


class StreamSpill(Structure, compiled=COMPILED):
    """Beginning of ``struct drr_spill``."""

    object: Annotated[int, Int64un]
    span: Annotated[int, Int64un * "bytes that follow unless compressed"]
    new_guid: Annotated[int, Int64un]
    flags: Annotated[int, Int8un]
    compression: Annotated[int, Int8un]
    reserved: Annotated[bytes, Bytes(6)]
    compressed: Annotated[int, Int64un * "bytes that follow, if compressed"]


class StreamEnd(Structure, compiled=COMPILED):
    """Beginning of ``struct drr_end``."""

    checksum: Annotated[bytes, Bytes(32)]
    new_guid: Annotated[int, Int64un]
