"""Packs: sealed chunks one after another, then an index of them. Written once; only ever shortened by holes."""

import os
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

import xxhash

from backup_vm.archive.format import (
    ENTRY,
    ENTRY_SIZE,
    FOOTER,
    FOOTER_SIZE,
    INDEX_ENTRY,
    INDEX_ENTRY_SIZE,
    PACK_HEAD,
    PACK_HEAD_SIZE,
)
from backup_vm.archive.storage import Reader, Storage
from backup_vm.errors import DamagedError
from wire.frames import largest_frame

SUFFIX = ".pack"
_OPEN_FILES = 64
_TAIL = 1 << 16
"""Bytes read at a pack's end, in the hope that its index is in them."""


class Packed(NamedTuple):
    """A chunk in a pack: where its sealed bytes are."""

    id: bytes
    offset: int
    length: int
    checksum: bytes


def checksum(data: bytes | memoryview) -> bytes:
    """XXH3-128."""
    return xxhash.xxh3_128_digest(data)


class NewPack:
    """A pack being written."""

    def __init__(self, storage: Storage, archive: bytes) -> None:
        identifier = os.urandom(16).hex()
        self.name = f"packs/{identifier[:2]}/{identifier}{SUFFIX}"
        self._file = storage.create(self.name)
        self._index: list[bytes] = []
        self._file.write(PACK_HEAD.build({"archive": archive}))

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._file.size

    def add(self, chunk_id: bytes, sealed: bytes | memoryview) -> int:
        """Append a sealed chunk; returns its offset."""
        offset, digest = self._file.size + ENTRY_SIZE, checksum(sealed)
        self._index.append(INDEX_ENTRY.pack(offset, len(sealed), chunk_id, digest))
        self._file.write(ENTRY.pack(len(sealed), chunk_id, digest), sealed)
        return offset

    def finish(self) -> None:
        """Write the index and make the pack durable."""
        index = b"".join(self._index)
        footer = {"index": self._file.size, "count": len(self._index), "checksum": checksum(index)}
        self._file.write(index, FOOTER.build(footer))
        self._file.finish()

    def abandon(self) -> None:
        """Remove it."""
        self._file.abandon()


class PackReader:
    """Reads sealed chunks out of packs, keeping a few of them open."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._open: OrderedDict[str, Reader] = OrderedDict()

    def __enter__(self) -> "PackReader":
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def _reader(self, name: str) -> Reader:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        try:
            reader = self._open[name] = self._storage.reader(name)
        except FileNotFoundError:
            raise DamagedError(
                f"{self._storage.describe(name)} is missing", "run: sparsebak scrub"
            ) from None
        if len(self._open) > _OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return reader

    def read(self, name: str, chunk_id: bytes, offset: int, length: int) -> memoryview:
        """The sealed chunk of that id, which is known to lie there; raise DamagedError if it does not."""
        raw = memoryview(self._reader(name).read(offset - ENTRY_SIZE, ENTRY_SIZE + length))
        sealed = raw[ENTRY_SIZE:]
        expected = ENTRY.pack(length, chunk_id, checksum(sealed))
        if len(sealed) != length or raw[:ENTRY_SIZE] != expected:
            text = f"{self._storage.describe(name)} is damaged at byte {offset} (chunk {chunk_id.hex()[:16]})"
            raise DamagedError(text, "run: sparsebak scrub")
        return sealed

    def sound(self, name: str, entry: Packed) -> bool:
        """Whether a pack holds a chunk undamaged where an entry says."""
        try:
            self.read(name, entry.id, entry.offset, entry.length)
        except DamagedError:
            return False
        return True


def read_index(storage: Storage, name: str, archive: bytes) -> list[Packed]:
    """The index of a pack, or raise DamagedError."""
    size = storage.size(name)
    reader = storage.reader(name)
    try:
        head = PACK_HEAD.parse(reader.read(0, PACK_HEAD_SIZE))
        tail = reader.read(max(size - _TAIL, 0), _TAIL)
        footer = FOOTER.parse(tail[-FOOTER_SIZE:])
        if (
            head["archive"] != archive
            or footer["index"] + footer["count"] * INDEX_ENTRY_SIZE + FOOTER_SIZE != size
        ):
            raise DamagedError(
                f"{storage.describe(name)} is damaged: head and foot do not fit together"
            )
        length = footer["count"] * INDEX_ENTRY_SIZE
        whole = (
            tail
            if length + FOOTER_SIZE <= len(tail)
            else reader.read(footer["index"], length + FOOTER_SIZE)
        )
        index = whole[len(whole) - FOOTER_SIZE - length : len(whole) - FOOTER_SIZE]
    except ValueError:
        raise DamagedError(
            f"{storage.describe(name)} is damaged: no pack head or foot where they belong"
        ) from None
    finally:
        reader.close()
    if checksum(index) != footer["checksum"]:
        raise DamagedError(f"{storage.describe(name)} is damaged: its index has another checksum")
    return [
        Packed(chunk_id, offset, length, digest)
        for offset, length, chunk_id, digest in INDEX_ENTRY.iter_unpack(index)
    ]


def scan(storage: Storage, name: str, chunk_size: int) -> Iterator[Packed]:
    """The chunks of a pack whose index is lost, found by the entries before them, as far as they go on soundly."""
    size, at = storage.size(name), PACK_HEAD_SIZE
    reader = storage.reader(name)
    try:
        while at + ENTRY_SIZE <= size:
            length, chunk_id, digest = ENTRY.unpack(reader.read(at, ENTRY_SIZE))
            if not 0 < length <= largest_frame(chunk_size) or at + ENTRY_SIZE + length > size:
                return
            sealed = reader.read(at + ENTRY_SIZE, length)
            if checksum(sealed) == digest:
                yield Packed(chunk_id, at + ENTRY_SIZE, length, digest)
            at += ENTRY_SIZE + length
    finally:
        reader.close()
