# SPDX-License-Identifier: GPL-2.0-or-later
"""The folders of NTFS: an index of names, a tree whose nodes have entries at every level."""

from collections.abc import Iterator
from struct import Struct, unpack_from

from backup_vm.files.readers.ntfs_records import Record, Records, mended
from backup_vm.files.readers.source import Malformed

NAME = "$I30".encode("utf-16-le")
_ROOT, _BLOCKS = 0x90, 0xA0
_ENTRY = Struct("<QHHH")
"""Reference, length, length of the key, flags."""
_HAS_BELOW, _IS_LAST = 1, 2
_KEY, _NAME_AT = 16, 66
_SECTOR = 512
DOS_NAME = 2
"""The kind of names of eight letters and three, that a file has beside a longer one."""


def names_in(records: Records, record: Record, cluster: int) -> Iterator[tuple[int, bytes]]:
    """References and names, in UTF-16, of a folder's files. Raises Malformed."""
    root = records.stream(record, _ROOT, NAME)
    if root is None or root.value is None or len(root.value) < 32:
        raise Malformed("a folder is damaged")
    (size,) = unpack_from("<I", root.value, 8)
    if size not in (512 << i for i in range(8)):
        raise Malformed("a folder is damaged")
    blocks = records.stream(record, _BLOCKS, NAME)
    each = cluster if cluster <= size else _SECTOR
    seen: set[int] = set()
    left = [(root.value, 16)]
    while left:
        raw, at = left.pop()
        for flags, reference, key, below in _entries(raw, at):
            if not flags & _IS_LAST:
                if len(key) < _NAME_AT or len(key) < _NAME_AT + 2 * key[64]:
                    raise Malformed("a folder is damaged")
                if key[65] != DOS_NAME:
                    yield reference, key[_NAME_AT : _NAME_AT + 2 * key[64]]
            if flags & _HAS_BELOW:
                if blocks is None or below in seen:
                    raise Malformed("a folder is damaged")
                seen.add(below)
                block = mended(blocks.read(below * each, size), b"INDX")
                if unpack_from("<Q", block, 16)[0] != below:
                    raise Malformed("a folder is damaged")
                left.append((block, 24))


def _entries(raw: bytes, at: int) -> Iterator[tuple[int, int, bytes, int]]:
    """Flags, reference, key, and the node below, of each entry of a node whose header is there."""
    first, length = unpack_from("<II", raw, at)
    end = min(at + length, len(raw))
    at += first
    while at + _KEY <= end:
        reference, length, key, flags = _ENTRY.unpack_from(raw, at)
        below = flags & _HAS_BELOW
        if at + length > end or length < _KEY + key + 8 * below:
            break
        node = unpack_from("<Q", raw, at + length - 8)[0] if below else 0
        yield flags, reference, raw[at + _KEY : at + _KEY + key], node
        if flags & _IS_LAST:
            return
        at += length
    raise Malformed("a folder is damaged")
