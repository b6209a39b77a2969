# SPDX-License-Identifier: GPL-2.0-or-later
"""Partial sessions: what has arrived of a session that is not complete, so that the next run
resumes from there.

A file ``volumes/<volume id>/<session id>.partial``: the offer, then groups of entries, each with
its own digest, added only after the packs that hold their chunks are durable. The first group that
does not check out ends it. It belongs to this machine; of an archive elsewhere a run that ends
without completing it leaves what it has in the store, too, as ``<session id>-<8
digits>.unfinished`` (other programs ignore that name): whoever prunes there sees what is still
wanted, and whichever machine backs up next resumes from it.
"""

import hashlib
import operator
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING

from backup_vm import failures
from backup_vm.archive import naming
from backup_vm.archive.damage import damage
from backup_vm.archive.format import GROUP, SESSION_ENTRY_SIZE, pack_numbers, unpack_numbers
from backup_vm.archive.storage import WHOLE, Storage, Workspace
from backup_vm.errors import DamagedError, ForbiddenError
from common.durable import closing_fd, pwrite_all
from wire.chunks import ID_SIZE, ZERO_ID
from wire.merkle import chunk_count
from wire.messages import OFFER_FULL, Offer

if TYPE_CHECKING:
    from backup_vm.archive.catalog import ChunkCatalog

SUFFIX, UNFINISHED = ".partial", ".unfinished"
_MAX_GROUP = 1 << 17
"""Entries of one group; what is written has less than a tenth of that."""


class Partial:
    """One partial session. ``position``: the first chunk number not yet stored; ``count``: entries
    stored.

    Its file is open only while something is read or written: a run may have hundreds of them.
    """

    def __init__(self, storage: Storage, name: str, offer: Offer) -> None:
        self._storage, self.name, self.offer = storage, name, offer
        self.discarded = self._left = False
        self.position = self.count = 0
        self._end = Offer.length()
        chunks = chunk_count(offer.size, offer.chunk_size) if offer.chunk_size else 0
        for upto, payload, after in self._groups():
            count = len(payload) // SESSION_ENTRY_SIZE
            if upto > chunks or not _rising(payload[: 8 * count], self.position, upto):
                break  # whoever can write to the disk can make a digest
            self.position, self._end = upto, after
            self.count += count
        with self._file() as fd:
            os.ftruncate(fd, self._end)

    def _file(self) -> AbstractContextManager[int]:
        return closing_fd(self._storage.workspace.descriptor(self.name))

    @classmethod
    def create(cls, storage: Storage, offer: Offer) -> "Partial":
        """Begin one. It is brought to disk when it is left; a run that finds none, or half of it,
        asks for its chunks again.
        """
        name = _name(offer)
        _write(storage.workspace, name, offer.build())
        return cls(storage, name, offer)

    @classmethod
    def load(cls, storage: Storage, name: str) -> "Partial | None":
        """Open one; None when not even its offer is sound, and for one that has another name, in a
        copy of the archive by hard links, say: what is written here would be written there, too.
        """
        try:
            with storage.workspace.open(name) as file:
                if os.fstat(file.fileno()).st_nlink > 1:
                    return None
                offer = Offer.parse(file.read(Offer.length()))
            return cls(storage, name, offer) if name == _name(offer) else None
        except (ValueError, OSError, DamagedError):
            return None

    def is_of(self, offer: Offer) -> bool:
        """Whether it is of the session that dom0 offers (again): the same in all that its record
        and its file will say. Its own offer has no check, and what the session builds on is in no
        record: a bit of that gone wrong would make a session that builds on none there is.
        """
        return _lasting(self.offer) == _lasting(offer)

    def close(self) -> None:
        """Leave it for a later run, on disk; nothing happens when that was done, or it is gone."""
        if not self._left:
            self._left = True
            with self._file() as fd:
                os.fsync(fd)

    def discard(self) -> None:
        """Remove it, its session being stored, or not wanted any more."""
        self.discarded = self._left = True
        # nothing waits for the disk: should it be there again after a crash, the next run removes
        # it
        self._storage.workspace.local(self.name).unlink(missing_ok=True)
        self.withdraw()

    def publish(self) -> None:
        """Leave what there is in the store, for others to see. It must be closed. Raises OSError,
        SparsebakError.
        """
        if self.count and self._storage.elsewhere and self._end <= WHOLE:
            stem = self.name.removesuffix(SUFFIX)
            name = f"{stem}-{os.urandom(4).hex()}{UNFINISHED}"
            raw = self._storage.workspace.read(self.name)
            earlier = self._published()
            self._storage.write(name, raw)
            _remove(self._storage, earlier)

    def withdraw(self) -> None:
        """Take away what was left in the store for others to see."""
        if self._storage.elsewhere:
            _remove(self._storage, self._published())

    def _published(self) -> list[str]:
        names = self._storage.names("volumes", UNFINISHED)
        mine = self.offer.session.hex()
        return [n for n in names if naming.is_unfinished(n) and naming.session_of(n) == mine]

    def _groups(self) -> Iterator[tuple[int, bytes, int]]:
        with self._file() as fd:
            yield from _groups(lambda offset, length: os.pread(fd, length, offset))

    def append(self, upto: int, entries: list[tuple[int, bytes]]) -> None:
        """Add entries that cover the chunks up to ``upto``, not included; their packs are durable
        already.

        Raises OSError; then it is as it was before.
        """
        numbers = pack_numbers([number for number, _ in entries])
        payload = numbers + b"".join(chunk_id for _, chunk_id in entries)
        group = GROUP.pack(upto, len(entries), _digest(upto, payload)) + payload
        with failures.naming(self._storage.workspace.describe(self.name)), self._file() as fd:
            try:
                pwrite_all(fd, group, self._end)
            except OSError:
                os.ftruncate(fd, self._end)
                raise
        self._end += len(group)
        self.position = upto
        self.count += len(entries)

    def keep_known(self, catalog: "ChunkCatalog") -> None:
        """Go back to before the first group with a chunk that is not stored (any more): from there
        on it is sent again.
        """
        position, count, end = 0, 0, Offer.length()
        for upto, payload, after in self._groups():
            if catalog.lacking(i for i in _ids(payload) if i != ZERO_ID):
                break
            position, end = upto, after
            count += len(payload) // SESSION_ENTRY_SIZE
        if end != self._end:
            with self._file() as fd:
                os.ftruncate(fd, end)
            self.position, self.count, self._end = position, count, end

    def numbers(self) -> Iterator[bytes]:
        """The column of chunk numbers, piece by piece."""
        for _, payload, _ in self._groups():
            yield payload[: len(payload) // SESSION_ENTRY_SIZE * 8]

    def ids(self) -> Iterator[bytes]:
        """The column of chunk ids, piece by piece."""
        for _, payload, _ in self._groups():
            yield payload[len(payload) // SESSION_ENTRY_SIZE * 8 :]


def listed_ids(storage: Storage, name: str) -> Iterator[bytes]:
    """The ids in a partial or unfinished session, piece by piece; nothing is written. Raises
    DamagedError.
    """
    if naming.is_partial(name):
        with damage(storage.workspace, name), storage.workspace.open(name) as file:
            yield from _columns(lambda offset, length: os.pread(file.fileno(), length, offset))
        return
    with damage(storage, name):
        reader = storage.reader(name)
        try:
            yield from _columns(reader.read)
        finally:
            reader.close()


def _columns(read: Callable[[int, int], bytes]) -> Iterator[bytes]:
    for _, payload, _ in _groups(read):
        yield payload[len(payload) // SESSION_ENTRY_SIZE * 8 :]


def adopt(storage: Storage) -> None:
    """Make partial sessions of this machine out of those in the store that this machine has none
    of, or less of.
    """
    if not storage.elsewhere:
        return
    for name in storage.names("volumes", UNFINISHED):
        if not naming.is_unfinished(name):
            continue
        here = f"volumes/{naming.volume_of(name)}/{naming.session_of(name)}{SUFFIX}"
        size, own = storage.size(name), storage.workspace
        if size <= WHOLE and (not own.exists(here) or own.size(here) < size):
            # what is larger, or cannot be had, is sent again
            with suppress(DamagedError, FileNotFoundError):
                _write(own, here, storage.read(name))


def _lasting(offer: Offer) -> Offer:
    """An offer without what may be another when dom0 makes it again."""
    return offer.replaced(changed=0, flags=offer.flags & OFFER_FULL)


def _write(workspace: Workspace, name: str, raw: bytes) -> None:
    if workspace.exists(name):
        workspace.remove(name)
    with (
        failures.naming(workspace.describe(name)),
        closing_fd(workspace.descriptor(name, create=True)) as fd,
    ):
        pwrite_all(fd, raw, 0)


def _remove(storage: Storage, names: list[str]) -> None:
    try:
        storage.remove(*names)
    except ForbiddenError:  # whoever may only add leaves it to whoever may remove
        return


def _name(offer: Offer) -> str:
    return f"volumes/{offer.volume_id.hex()}/{offer.session.hex()}{SUFFIX}"


def _groups(read: Callable[[int, int], bytes]) -> Iterator[tuple[int, bytes, int]]:
    """For each sound group: first chunk number it does not cover, payload, file offset after it."""
    at, position = Offer.length(), 0
    while len(head := read(at, GROUP.size)) == GROUP.size:
        upto, count, digest = GROUP.unpack(head)
        if count > _MAX_GROUP or upto < position:
            return
        payload = read(at + GROUP.size, count * SESSION_ENTRY_SIZE)
        if len(payload) != count * SESSION_ENTRY_SIZE or _digest(upto, payload) != digest:
            return
        at += GROUP.size + len(payload)
        position = upto
        yield upto, payload, at


def _rising(numbers: bytes, position: int, upto: int) -> bool:
    """Whether chunk numbers rise, from ``position`` on, and stay below ``upto``."""
    column = position - 1, *unpack_numbers(numbers), upto
    return all(map(operator.lt, column, column[1:]))


def _ids(payload: bytes) -> Iterator[bytes]:
    column = payload[len(payload) // SESSION_ENTRY_SIZE * 8 :]
    return (column[at : at + ID_SIZE] for at in range(0, len(column), ID_SIZE))


def _digest(upto: int, payload: bytes) -> bytes:
    return hashlib.blake2b(pack_numbers([upto]) + payload, digest_size=16).digest()
