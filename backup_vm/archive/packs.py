# SPDX-License-Identifier: GPL-2.0-or-later
"""Packs: sealed chunks one after another, then an index of them. Written once; only ever shortened
by holes.
"""

import os
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import xxhash

from backup_vm.archive.damage import damage
from backup_vm.archive.format import (
    ENTRY,
    ENTRY_SIZE,
    FOOTER_SIZE,
    INDEX_ENTRY,
    INDEX_ENTRY_SIZE,
    PACK_HEAD_SIZE,
    PackFoot,
    PackHead,
)
from backup_vm.archive.readers import Readers
from backup_vm.archive.storage import Reader, Storage
from backup_vm.errors import DamagedError, UnreadableError
from common.pipeline import in_order
from wire import CHUNK_SIZES
from wire.messages import largest_frame

SUFFIX = ".pack"
_LARGEST = largest_frame(CHUNK_SIZES[-1])
_END = 1 << 62
SALT = 16
"""Bytes at the beginning of a sealed chunk, which are random."""
_LARGEST_INDEX = INDEX_ENTRY_SIZE << 18
"""Bytes; packs that are written have far less: see MAX_ENTRIES of pack_writer."""
_TAIL, _INDEX_SHARE, _LONGEST_TAIL = 1 << 16, 1 << 9, 1 << 20
"""Bytes read at a pack's end, in the hope that its index is in them: so many, or this share of it;
no more of a file that is larger than any pack.
"""


class Packed(NamedTuple):
    """A chunk in a pack: where its sealed bytes are."""

    id: bytes
    offset: int
    length: int
    checksum: bytes


def checksum(data: bytes | memoryview) -> bytes:
    """XXH3-128."""
    # It finds damage. Malice is for the seals: whoever can change a chunk can write its checksum,
    # whichever hash that is. BLAKE2b would take 2.5 s for 2 GB, this takes 0.1.
    return xxhash.xxh3_128_digest(data)


class NewPack:
    """A pack being written."""

    def __init__(self, storage: Storage, archive: bytes) -> None:
        # Random, not counted: no machine gives a name a second time, whatever it knows of the
        # others. Names and sizes are all that the catalog compares.
        identifier = os.urandom(16).hex()
        self.name = f"packs/{identifier[:2]}/{identifier}{SUFFIX}"
        self._file, self._rate = storage.create(self.name), storage.rate
        self._index: list[bytes] = []
        self._file.write(PackHead(archive).build())

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._file.size

    def add(self, chunk_id: bytes, sealed: bytes | memoryview) -> int:
        """Append a sealed chunk; returns its offset."""
        self._rate.spend(len(sealed))
        # Said twice, before the chunk and in the index: a pack whose end is lost can still be read
        # from its beginning, see ``scan``.
        offset, digest = self._file.size + ENTRY_SIZE, checksum(sealed)
        self._index.append(INDEX_ENTRY.pack(offset, len(sealed), chunk_id, digest))
        self._file.write(ENTRY.pack(len(sealed), chunk_id, digest), sealed)
        return offset

    def finish(self) -> None:
        """Write the index and make the pack durable."""
        index = b"".join(self._index)
        foot = PackFoot(self._file.size, len(self._index), checksum(index))
        self._file.write(index, foot.build())
        self._file.finish()

    def abandon(self) -> None:
        """Remove it."""
        self._file.abandon()


class PackReader:
    """Reads sealed chunks out of packs, keeping a few of them open. Safe to share between
    threads.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage, self._readers = storage, Readers(storage)
        # One read at a time: a reader may be closed for another one, and a remote one remembers
        # where it is.
        self._lock = threading.Lock()

    def __enter__(self) -> "PackReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open; it is opened again when it is needed."""
        with self._lock:
            self._readers.close()

    def read(self, name: str, chunk_id: bytes, offset: int, length: int) -> memoryview:
        """The sealed chunk of that id, which is known to be there; raise DamagedError if it is
        not.
        """
        if not 0 < length <= _LARGEST or not ENTRY_SIZE <= offset < _END:
            raise self._damaged(name, chunk_id, offset)
        self._storage.rate.spend(length)
        with self._lock, damage(self._storage, name):
            raw = memoryview(self._readers.of(name).read(offset - ENTRY_SIZE, ENTRY_SIZE + length))
        sealed = raw[ENTRY_SIZE:]
        # The entry before it says whose it is: a row of the catalog that is wrong is noticed here,
        # and never hands on another chunk's bytes.
        expected = ENTRY.pack(length, chunk_id, checksum(sealed))
        if len(sealed) != length or raw[:ENTRY_SIZE] != expected:
            raise self._damaged(name, chunk_id, offset)
        return sealed

    def _damaged(self, name: str, chunk_id: bytes, offset: int) -> DamagedError:
        where = f"{self._storage.describe(name)} is damaged at byte {offset}"
        return DamagedError(f"{where} (chunk {chunk_id.hex()[:16]})", "run: sparsebak scrub")

    def hollow(self, name: str, entry: Packed) -> bool:
        """Whether there is a hole, or nothing, where an entry says. Raise UnreadableError."""
        try:
            with self._lock, damage(self._storage, name):
                # The salt of a sealed chunk is 16 random bytes: zeros there are a hole.
                return not any(self._readers.of(name).read(entry.offset, min(SALT, entry.length)))
        except UnreadableError:
            raise
        except DamagedError:
            return True

    def sound(self, name: str, entry: Packed) -> bool:
        """Whether a pack holds a chunk undamaged where an entry says."""
        try:
            self.read(name, entry.id, entry.offset, entry.length)
        except DamagedError:
            return False
        return True


def read_index(storage: Storage, name: str, archive: bytes) -> list[Packed]:
    """The index of a pack, or raise DamagedError."""
    path = storage.describe(name)
    index, foot = _raw_index(storage, name, archive)
    if checksum(index) != foot.checksum:
        raise DamagedError(f"{path} is damaged: its index has another checksum")
    found = [
        Packed(chunk_id, offset, length, digest)
        for offset, length, chunk_id, digest in INDEX_ENTRY.iter_unpack(index)
    ]
    end = PACK_HEAD_SIZE
    for entry in found:  # whoever can write to the disk can make a checksum
        if entry.offset < end + ENTRY_SIZE or not 0 < entry.length <= _LARGEST:
            raise DamagedError(f"{path} is damaged: its index is malformed")
        end = entry.offset + entry.length
    if end > foot.index:
        raise DamagedError(f"{path} is damaged: its index is malformed")
    return found


def _raw_index(storage: Storage, name: str, archive: bytes) -> tuple[bytes, PackFoot]:
    """The bytes of a pack's index, and the foot that says where they are, of a pack of this archive
    whose head and foot fit together; raise DamagedError.
    """
    path = storage.describe(name)
    with damage(storage, name):
        size, reader = storage.size(name), storage.reader(name)
        try:
            # The end first: at its beginning a file elsewhere is read ahead, for whoever begins
            # there reads on, as a rule.
            expected = min(max(_TAIL, size // _INDEX_SHARE), _LONGEST_TAIL)
            tail = reader.read(max(size - expected, 0), expected)
            beginning = tail if size <= expected else reader.read(0, PACK_HEAD_SIZE)
            head = PackHead.parse(beginning[:PACK_HEAD_SIZE])
            foot = PackFoot.parse(tail[-FOOTER_SIZE:])
            length = foot.count * INDEX_ENTRY_SIZE
            if head.archive != archive or foot.index + length + FOOTER_SIZE != size:
                raise DamagedError(f"{path} is damaged: head and foot do not fit together")
            if length > _LARGEST_INDEX:
                raise DamagedError(f"{path} is damaged: an impossible number of chunks")
            whole = tail
            if length + FOOTER_SIZE > len(tail):
                whole = reader.read(foot.index, length + FOOTER_SIZE)
            index = whole[len(whole) - FOOTER_SIZE - length : len(whole) - FOOTER_SIZE]
        except ValueError:
            raise DamagedError(
                f"{path} is damaged: no pack head or foot where they belong"
            ) from None
        finally:
            reader.close()
    return index, foot


def indexes(
    storage: Storage, names: Iterable[str], archive: bytes
) -> Iterator[tuple[str, list[Packed] | Exception]]:
    """The index of each pack, in this order, or the DamagedError or OSError that keeps it from
    being read. Several are on their way at once where that is quicker.
    """

    def index(name: str) -> tuple[str, list[Packed] | Exception]:
        try:
            return name, read_index(storage, name, archive)
        except (DamagedError, OSError) as error:
            return name, error

    # Of a pack elsewhere it is two requests, and to wait for these is all that it takes.
    return in_order(index, names, storage.readers, 2 * storage.readers)


def scan(storage: Storage, name: str, chunk_size: int) -> Iterator[Packed]:
    """The chunks of a pack whose index is lost, found by the entries before them, as far as these
    make sense.

    What cannot be read is left out: a pack that cannot be opened has none.
    """
    try:
        with damage(storage, name):
            size, reader = storage.size(name), storage.reader(name)
    except DamagedError:
        return
    try:
        at = PACK_HEAD_SIZE
        while (
            at + ENTRY_SIZE <= size
            and len(head := read_or_nothing(reader, at, ENTRY_SIZE)) == ENTRY_SIZE
        ):
            length, chunk_id, digest = ENTRY.unpack(head)
            if not 0 < length <= largest_frame(chunk_size) or at + ENTRY_SIZE + length > size:
                return
            if checksum(read_or_nothing(reader, at + ENTRY_SIZE, length)) == digest:
                yield Packed(chunk_id, at + ENTRY_SIZE, length, digest)
            at += ENTRY_SIZE + length
    finally:
        reader.close()


def read_or_nothing(reader: Reader, offset: int, length: int) -> bytes:
    """What is there; nothing where it cannot be read."""
    try:
        return reader.read(offset, length)
    except (OSError, DamagedError):
        return b""
