"""Partial sessions: what has arrived of a session that is not complete, so that the next run goes on from there.

A file ``volumes/<volume id>/<session id>.partial``: the offer, then groups of entries, each with its own digest, added
only after the packs that hold their chunks are durable. The first group that does not check out ends it.
"""

import hashlib
import os
import struct
from collections.abc import Iterator

from backup_vm.archive.storage import Storage
from wire.durable import closing_fd, make_directory
from wire.frames import Offer
from wire.sealing import ID_SIZE

SUFFIX = ".partial"
_GROUP = struct.Struct("<QQ16s")
_MAX_GROUP = 1 << 22


class Partial:
    """One partial session. ``position``: the first chunk number not yet stored; ``count``: entries stored."""

    def __init__(self, storage: Storage, name: str, offer: Offer) -> None:
        self._storage, self.name, self.offer = storage, name, offer
        self._fd = os.open(storage.local(name), os.O_RDWR | os.O_CLOEXEC)
        self.position = self.count = 0
        end = Offer.length()
        for upto, payload, after in self._groups():
            self.position, end = upto, after
            self.count += len(payload) // (8 + ID_SIZE)
        os.ftruncate(self._fd, end)

    @classmethod
    def create(cls, storage: Storage, offer: Offer) -> "Partial":
        """Begin one. It is brought to disk when it is left; a run that finds none, or half of it, asks for its chunks again."""
        name = f"volumes/{offer.volume_id.hex()}/{offer.session.hex()}{SUFFIX}"
        path = storage.local(name)
        make_directory(path.parent)
        with closing_fd(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        ) as fd:
            os.pwrite(fd, offer.build(), 0)
        return cls(storage, name, offer)

    @classmethod
    def load(cls, storage: Storage, name: str) -> "Partial | None":
        """Open one; None when not even its offer is sound."""
        with open(storage.local(name), "rb") as file:
            raw = file.read(Offer.length())
        try:
            offer = Offer.parse(raw)
        except ValueError:
            return None
        sound = name == f"volumes/{offer.volume_id.hex()}/{offer.session.hex()}{SUFFIX}"
        return cls(storage, name, offer) if sound else None

    def close(self) -> None:
        """Leave it for a later run, on disk; nothing happens when it is closed."""
        if self._fd >= 0:
            os.fsync(self._fd)
            self._close()

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1

    def discard(self) -> None:
        """Remove it, its session being stored. Should it be there again after a crash, the next run removes it."""
        if self._fd >= 0:
            self._close()
        self._storage.local(self.name).unlink(missing_ok=True)

    def _groups(self) -> Iterator[tuple[int, bytes, int]]:
        """For each sound group: first chunk number it does not cover, payload, file offset after it."""
        at = Offer.length()
        position = 0
        while len(head := os.pread(self._fd, _GROUP.size, at)) == _GROUP.size:
            upto, count, digest = _GROUP.unpack(head)
            if count > _MAX_GROUP or upto < position:
                return
            payload = os.pread(self._fd, count * (8 + ID_SIZE), at + _GROUP.size)
            if len(payload) != count * (8 + ID_SIZE) or _digest(upto, payload) != digest:
                return
            at += _GROUP.size + len(payload)
            position = upto
            yield upto, payload, at

    def append(self, upto: int, entries: list[tuple[int, bytes]]) -> None:
        """Add entries that cover the chunks up to ``upto``, not included; their packs are durable already."""
        numbers = struct.pack(f"<{len(entries)}Q", *(number for number, _ in entries))
        payload = numbers + b"".join(chunk_id for _, chunk_id in entries)
        group = _GROUP.pack(upto, len(entries), _digest(upto, payload)) + payload
        os.pwrite(self._fd, group, os.fstat(self._fd).st_size)
        self.position = upto
        self.count += len(entries)

    def numbers(self) -> Iterator[bytes]:
        """The column of chunk numbers, piece by piece."""
        for _, payload, _ in self._groups():
            yield payload[: len(payload) // (8 + ID_SIZE) * 8]

    def ids(self) -> Iterator[bytes]:
        """The column of chunk ids, piece by piece."""
        for _, payload, _ in self._groups():
            yield payload[len(payload) // (8 + ID_SIZE) * 8 :]


def _digest(upto: int, payload: bytes) -> bytes:
    return hashlib.blake2b(struct.pack("<Q", upto) + payload, digest_size=16).digest()
