# SPDX-License-Identifier: GPL-2.0-or-later
"""Sending one session to a copy of its archive: all of it, or nothing.

What the copy lacks is looked up before anything is stored, so that a session which cannot be had
costs it nothing.
"""

import hashlib
from collections.abc import Iterator

from backup_vm.archive import lookup, sessions
from backup_vm.archive.archive import Archive
from backup_vm.archive.catalog import Place
from backup_vm.archive.format import NO_BASE
from backup_vm.archive.image import chain, split
from backup_vm.archive.intake import Entry, Incoming
from backup_vm.archive.pack_writer import PackWriter
from backup_vm.archive.packs import PackReader
from backup_vm.archive.sessions import Session
from backup_vm.errors import DamagedError, RemovedError
from backup_vm.jobs.reading import Proven, open_image, opened
from backup_vm.terminal.progress import Progress
from wire.chunks import ZERO_ID, Keys
from wire.open_chunks import ChunkNotAuthentic

_SLICE = 1 << 12


class Sender:
    """Sends sessions from ``source`` to ``target``, whose packs ``writer`` writes; with ``keys``
    only what has proven authentic.
    """

    def __init__(
        self,
        source: Archive,
        target: Archive,
        writer: PackWriter,
        reader: PackReader,
        progress: Progress,
        keys: Keys | None,
    ) -> None:
        self._source, self._target, self._writer, self._reader = source, target, writer, reader
        self._progress, self._keys = progress, keys
        self._lost: set[bytes] = set()
        """Chunks that turned out to be unreadable here."""

    def forget(self) -> None:
        """Another machine changed the source: what could not be read may be elsewhere now."""
        self._lost.clear()

    def send(self, series: list[Session], session: Session, whole: set[str]) -> None:
        """Store a session in the copy. ``series``: all of its volume here; ``whole``: files of the
        sessions that the copy has complete. Raise DamagedError, RemovedError; then it has none of
        it.
        """
        source, target = self._source, self._target
        sessions.check(source.storage, session)
        found, missing = chain(series, session)
        base, inherit = session.base, session.inherit
        if base != NO_BASE and (missing == base or found[-2].file not in whole):
            base, inherit = NO_BASE, 0  # what it builds on cannot be had, or not in the copy
        proven = self._proven(series, session)
        for part in self._parts(series, session, base):
            self._places(session, part)  # before anything of it is stored
        said = sessions.digest(source.storage, session) + inherit.to_bytes(8, "little")
        fingerprint = hashlib.blake2b(said, digest_size=16).digest()
        incoming = Incoming(target, self._writer, session.record, base, inherit, fingerprint)
        try:
            for part in self._parts(series, session, base):
                left = [one for one in part if one[0] >= incoming.position]
                for entry in self._opened(self._with_chunks(session, left), left, proven):
                    incoming.take(entry)
                    self._progress.advance(session.clear.chunk_size)
            incoming.finish()
        except (DamagedError, RemovedError):
            incoming.give_up()
            raise
        finally:
            incoming.close()
        target.damaged.pop(session.file, None)
        spoilt = target.catalog.spoilt()
        if session.file in spoilt:
            target.catalog.set_spoilt(spoilt - {session.file})

    def _proven(self, series: list[Session], session: Session) -> Proven | None:
        """With the key: a session whose record and ids are authentic; raise DamagedError."""
        if self._keys is None:
            return None
        image = self._source.image(series, session)
        return open_image(self._source, image, self._keys, session.volume)

    def _opened(
        self, entries: Iterator[Entry], part: list[tuple[int, bytes]], proven: Proven | None
    ) -> Iterator[Entry]:
        """The entries of a part; with the key each after its chunk has opened, so that none that
        was forged is stored.
        """
        if proven is None or self._keys is None:
            yield from entries
            return
        try:
            yield from opened(entries, proven)
        except ChunkNotAuthentic as error:
            self._lost.add(dict(part)[error.number])
            raise DamagedError(f"{error} ({self._source.storage.describe()})") from None

    def _parts(
        self, series: list[Session], session: Session, base: bytes
    ) -> Iterator[list[tuple[int, bytes]]]:
        """The entries of a session, in parts: as they are, or those it has when it builds on
        nothing.
        """
        source = self._source
        if base == session.base:
            for numbers, column in sessions.columns(source.storage, session).slices(_SLICE):
                yield list(zip(numbers.tolist(), split(column), strict=True))
            return
        for first, ids in source.image(series, session).windows():
            yield [(first + at, i) for at, i in enumerate(ids) if i != ZERO_ID]

    def _places(self, session: Session, part: list[tuple[int, bytes]]) -> dict[bytes, Place]:
        """Where the chunks are here that the copy lacks; raise DamagedError if one cannot
        be had.
        """
        lacking = {one for _, one in part if one != ZERO_ID and not self._writer.holds(one)}
        places = lookup.places(self._source, session, lacking)
        for number, chunk_id in part:
            if chunk_id in lacking and (chunk_id not in places or chunk_id in self._lost):
                where = self._source.storage.describe()
                raise DamagedError(f"chunk {number} is missing from {where}, or damaged")
        return places

    def _with_chunks(self, session: Session, part: list[tuple[int, bytes]]) -> Iterator[Entry]:
        """Entries with the sealed chunk where the copy lacks it."""
        places = self._places(session, part)
        for number, chunk_id in part:
            sealed: bytes | memoryview = b""
            if chunk_id in places and not self._writer.holds(chunk_id):
                place = places[chunk_id]
                try:
                    sealed = lookup.read(self._source, self._reader, chunk_id, place)
                except DamagedError:
                    self._lost.add(chunk_id)
                    raise
            yield Entry(number, chunk_id, sealed)
