"""Packs: sealed chunks one after another, then an index of them. Written once; only ever shortened by holes."""

import os
import secrets
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

import construct as c
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
from backup_vm.archive.storage import LocalStorage
from backup_vm.errors import DamagedError
from wire.frames import largest_frame

PACK_SIZE = 32 << 20
"""Bytes after which a pack is closed."""
SUFFIX = ".pack"
_OPEN_FILES = 64


class Packed(NamedTuple):
    """A chunk in a pack: where its sealed bytes are."""

    id: bytes
    offset: int
    length: int
    checksum: bytes


def checksum(data: bytes) -> bytes:
    """XXH3-128."""
    return xxhash.xxh3_128_digest(data)


class NewPack:
    """A pack being written."""

    def __init__(self, storage: LocalStorage, archive: bytes) -> None:
        identifier = secrets.token_hex(16)
        self.name = f"packs/{identifier[:2]}/{identifier}{SUFFIX}"
        self._file = storage.create(self.name)
        self._index: list[bytes] = []
        self._file.write(PACK_HEAD.build({"archive": archive}))

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._file.size

    def add(self, chunk_id: bytes, sealed: bytes) -> int:
        """Append a sealed chunk; returns its offset."""
        fields = {"id": chunk_id, "length": len(sealed), "checksum": checksum(sealed)}
        offset = self._file.size + ENTRY_SIZE
        self._index.append(INDEX_ENTRY.build({**fields, "offset": offset}))
        self._file.write(ENTRY.build(fields), sealed)
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

    def __init__(self, storage: LocalStorage) -> None:
        self._storage = storage
        self._open: OrderedDict[str, int] = OrderedDict()

    def __enter__(self) -> "PackReader":
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def _fd(self, name: str) -> int:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        try:
            fd = self._open[name] = self._storage.open(name)
        except FileNotFoundError:
            raise DamagedError(f"{self._storage.path(name)} is missing", "run: sparsebak scrub") from None
        if len(self._open) > _OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        return fd

    def read(self, name: str, chunk_id: bytes, offset: int, length: int) -> bytes:
        """The sealed chunk of that id, which is known to lie there; raise DamagedError if it does not."""
        raw = os.pread(self._fd(name), ENTRY_SIZE + length, offset - ENTRY_SIZE)
        sealed = raw[ENTRY_SIZE:]
        expected = ENTRY.build({"id": chunk_id, "length": length, "checksum": checksum(sealed)})
        if len(sealed) != length or raw[:ENTRY_SIZE] != expected:
            text = f"{self._storage.path(name)} is damaged at byte {offset} (chunk {chunk_id.hex()[:16]})"
            raise DamagedError(text, "run: sparsebak scrub")
        return sealed

    def sound(self, name: str, entry: Packed) -> bool:
        """Whether a pack holds a chunk undamaged where an entry says."""
        try:
            self.read(name, entry.id, entry.offset, entry.length)
        except DamagedError:
            return False
        return True


def read_index(storage: LocalStorage, name: str, archive: bytes) -> list[Packed]:
    """The index of a pack, or raise DamagedError."""
    size = storage.size(name)
    fd = storage.open(name)
    try:
        head = PACK_HEAD.parse(os.pread(fd, PACK_HEAD_SIZE, 0))
        footer = FOOTER.parse(os.pread(fd, FOOTER_SIZE, max(size - FOOTER_SIZE, 0)))
        if head.archive != archive or footer.index + footer.count * INDEX_ENTRY_SIZE + FOOTER_SIZE != size:
            raise DamagedError(f"{storage.path(name)} is damaged: head and foot do not fit together")
        index = os.pread(fd, footer.count * INDEX_ENTRY_SIZE, footer.index)
    except c.ConstructError:
        raise DamagedError(f"{storage.path(name)} is damaged: no pack head or foot where they belong") from None
    finally:
        os.close(fd)
    if checksum(index) != footer.checksum:
        raise DamagedError(f"{storage.path(name)} is damaged: its index has another checksum")
    parsed = (INDEX_ENTRY.parse(index[at : at + INDEX_ENTRY_SIZE]) for at in range(0, len(index), INDEX_ENTRY_SIZE))
    return [Packed(entry.id, entry.offset, entry.length, entry.checksum) for entry in parsed]


def scan(storage: LocalStorage, name: str, chunk_size: int) -> Iterator[Packed]:
    """The chunks of a pack whose index is lost, found by the entries before them, as far as they go on soundly."""
    size, at = storage.size(name), PACK_HEAD_SIZE
    fd = storage.open(name)
    try:
        while at + ENTRY_SIZE <= size:
            entry = ENTRY.parse(os.pread(fd, ENTRY_SIZE, at))
            if not 0 < entry.length <= largest_frame(chunk_size) or at + ENTRY_SIZE + entry.length > size:
                return
            sealed = os.pread(fd, entry.length, at + ENTRY_SIZE)
            if checksum(sealed) == entry.checksum:
                yield Packed(entry.id, at + ENTRY_SIZE, entry.length, entry.checksum)
            at += ENTRY_SIZE + int(entry.length)
    finally:
        os.close(fd)
