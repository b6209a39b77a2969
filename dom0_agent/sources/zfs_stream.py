# SPDX-License-Identifier: GPL-2.0-or-later
"""The stream of ``zfs send -i``, of which only the records are looked at: which blocks of a volume
were written or given back between two snapshots.

ZFS compares no contents: it names each block that was written after the older snapshot, by the
time of its birth in the tree of blocks, and skips what is older. Besides, it names as given back
(FREE) whatever has no block now and may have had one: a superset, which misses nothing. Records as
OpenZFS' ``include/sys/zfs_ioctl.h`` has them (``dmu_replay_record_t``); payloads are passed over.
"""

from collections.abc import Callable, Iterator
from typing import BinaryIO

from dom0_agent import kernel
from dom0_agent.sources import Range

_RECORD, _BEGIN, _OBJECT = (
    one.row() for one in (kernel.StreamRecord, kernel.StreamBegin, kernel.StreamObject)
)
_WRITE, _FREE = kernel.StreamWrite.row(), kernel.StreamFree.row()
_EMBEDDED, _SPILL = kernel.StreamEmbedded.row(), kernel.StreamSpill.row()
_END = kernel.StreamEnd.row()
_MAGIC, _ONE_STREAM, _VOLUME = 0x2F5BACBAC, 1, 3
(
    _KIND_BEGIN,
    _KIND_OBJECT,
    _KIND_FREE_OBJECTS,
    _KIND_WRITE,
    _KIND_FREE,
    _KIND_END,
    _,
    _KIND_SPILL,
    _KIND_EMBEDDED,
    _KIND_OBJECT_RANGE,
) = range(10)
_DATA = 1
"""The object of a volume that has its bytes (``ZVOL_OBJ``)."""
_LARGEST = 16 << 20
"""Bytes that one block, and so one payload, can have (``SPA_MAXBLOCKSIZE``)."""
_TO_THE_END = (1 << 64) - 1
_SKIPPED = 1 << 20


def changed(stream: BinaryIO, old_guid: int, new_guid: int) -> Iterator[Range]:
    """Ranges that may differ between the two snapshots, in order, adjoining ones joined; the last
    may end past the end of the volume. Reads the stream to its end.

    Raises ValueError for anything that is not the whole stream between just these two, also after
    ranges were given.
    """
    start = end = 0
    tail = _TO_THE_END
    for first, beyond in _ranges(stream, old_guid, new_guid):
        if beyond == _TO_THE_END:  # what is past the last block, said before all others
            tail = min(tail, first)
            continue
        if first < end:
            raise ValueError("its records are out of order")
        if first > end:
            if start < end:
                yield start, end
            start = first
        end = beyond
    if tail <= end:
        end = _TO_THE_END
    if start < end:
        yield start, end
    if end < tail < _TO_THE_END:
        yield tail, _TO_THE_END


def _ranges(stream: BinaryIO, old_guid: int, new_guid: int) -> Iterator[Range]:
    kind, payload, body = _RECORD.unpack(_exactly(stream, _RECORD.size))
    magic, version, _, dataset, _, to_guid, from_guid, _ = _BEGIN.unpack(body)
    if kind != _KIND_BEGIN or magic != _MAGIC or version & 3 != _ONE_STREAM or dataset != _VOLUME:
        raise ValueError("it is not the stream of one volume")
    if (from_guid, to_guid) != (old_guid, new_guid):
        raise ValueError("it is of other snapshots")
    _skip(stream, payload)
    while True:
        kind, _, body = _RECORD.unpack(_exactly(stream, _RECORD.size))
        if kind == _KIND_END:
            break
        if kind not in _READERS:
            raise ValueError(f"it has a record of the unknown kind {kind}")
        found, payload = _READERS[kind](body)
        if found is not None:
            yield found
        _skip(stream, payload)
    if _END.unpack_from(body)[1] != new_guid or stream.read(1):
        raise ValueError("it does not end where it says")


def _object(body: bytes) -> tuple[Range | None, int]:
    _, _, _, _, bonus, _, raw_bonus = _OBJECT.unpack_from(body)
    return None, raw_bonus or _filled_up(bonus)


def _free_objects(body: bytes) -> tuple[Range | None, int]:
    first, count, _ = _FREE.unpack_from(body)
    if first <= _DATA < first + count:
        raise ValueError("the volume's own object is gone")
    return None, 0


def _write(body: bytes) -> tuple[Range | None, int]:
    number, _, _, offset, span, _, _, compression, _, compressed = _WRITE.unpack_from(body)
    return _of_data(number, offset, span), compressed if compression else span


def _free(body: bytes) -> tuple[Range | None, int]:
    number, offset, span = _FREE.unpack_from(body)
    return _of_data(number, offset, span), 0


def _embedded(body: bytes) -> tuple[Range | None, int]:
    number, offset, span, _, _, _, compressed = _EMBEDDED.unpack_from(body)
    return _of_data(number, offset, span), _filled_up(compressed)


def _spill(body: bytes) -> tuple[Range | None, int]:
    _, span, _, _, _, _, compressed = _SPILL.unpack_from(body)
    return None, compressed or span


def _object_range(body: bytes) -> tuple[Range | None, int]:
    return None, 0


_READERS: dict[int, Callable[[bytes], tuple[Range | None, int]]] = {
    _KIND_OBJECT: _object,
    _KIND_FREE_OBJECTS: _free_objects,
    _KIND_WRITE: _write,
    _KIND_FREE: _free,
    _KIND_SPILL: _spill,
    _KIND_EMBEDDED: _embedded,
    _KIND_OBJECT_RANGE: _object_range,
}
"""By the kind of a record: what it names of the volume's bytes, and the length of its payload."""


def _of_data(number: int, offset: int, span: int) -> Range | None:
    """A range of the volume, if it is one of its bytes and not of what ZFS knows about it."""
    if number != _DATA:
        return None
    beyond = _TO_THE_END if span == _TO_THE_END else offset + span
    if offset >= beyond or beyond > _TO_THE_END:
        raise ValueError(f"it names {span} bytes from {offset} on")
    return offset, beyond


def _filled_up(length: int) -> int:
    return -(-length // 8) * 8


def _exactly(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) != length:
        raise ValueError("it ends too early")
    return data


def _skip(stream: BinaryIO, length: int) -> None:
    if length > _LARGEST:
        raise ValueError(f"it has a payload of {length} bytes")
    while length:
        length -= len(_exactly(stream, min(length, _SKIPPED)))
