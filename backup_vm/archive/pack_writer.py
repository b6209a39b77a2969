"""Storing what arrives: chunks into packs, entries into partial sessions, complete sessions into
session files.

Packs are brought to disk, or elsewhere, in the background while the next one fills. Only when some
are there do their chunks enter the catalog and their entries the partial session, and only then are
sessions that end in them stored.
"""

import sqlite3
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backup_vm.archive.archive import Archive
from backup_vm.archive.packs import NewPack
from backup_vm.archive.partial import Partial
from backup_vm.errors import DamagedError
from wire.chunks import ZERO_ID

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

MAX_ENTRIES = 1 << 14
"""Entries after which a pack is closed, however small, so that memory stays bounded."""
RECORD_SECONDS, RECORD_ENTRIES = 1.0, 1 << 16
"""Time and entries after which packs that are on disk are recorded: what a run that is killed must
send again.
"""


@dataclass
class Group:
    """Entries of one partial session that go with one pack."""

    partial: Partial
    entries: list[tuple[int, bytes]] = field(default_factory=list)


@dataclass
class Filling:
    """A pack and all that waits for it to be durable."""

    pack: NewPack | None = None
    places: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    entries: int = 0
    after: list[Callable[[], None]] = field(default_factory=list)


class PackWriter:
    """Takes in the chunks of one run, of any number of volumes one after another."""

    def __init__(self, archive: Archive) -> None:
        self._archive, self._catalog = archive, archive.catalog
        self._filling = Filling()
        self._flying: deque[tuple[Future[None], Filling]] = deque()
        self._settled: list[Filling] = []
        self._recorded = time.monotonic()
        self._background: ThreadPoolExecutor | None = None
        self.stored = 0
        """Bytes of sealed chunks newly stored."""

    def chunk(
        self, partial: Partial, number: int, chunk_id: bytes, sealed: bytes | memoryview
    ) -> None:
        """Take a chunk: ``sealed`` is empty for zeros, and for what the archive must hold
        already.
        """
        filling = self._filling
        if chunk_id != ZERO_ID and not self.holds(chunk_id):
            if not sealed:
                raise DamagedError(
                    f"the agent skipped chunk {chunk_id.hex()[:16]}, expecting it in the archive,"
                    " where it is missing",
                    "run: sparsebak scrub, then sparsebak backup",
                )
            if filling.pack is None:
                self._catalog.marks.storing = True
                filling.pack = NewPack(self._archive.storage, self._archive.parameters.archive)
            filling.places[chunk_id] = (filling.pack.add(chunk_id, sealed), len(sealed))
            self.stored += len(sealed)
        if not filling.groups or filling.groups[-1].partial is not partial:
            filling.groups.append(Group(partial))
        filling.groups[-1].entries.append(
            (number, chunk_id)
        )  # one step, for Ctrl-C may come between any two
        filling.entries += 1
        if filling.entries >= MAX_ENTRIES or (
            filling.pack is not None and filling.pack.size >= self._archive.storage.pack_size
        ):
            self._close_pack()

    def holds(self, chunk_id: bytes) -> bool:
        """Whether a chunk is in the archive, or on its way there."""
        return (
            chunk_id in self._filling.places
            or any(chunk_id in filling.places for _, filling in self._flying)
            or any(chunk_id in filling.places for filling in self._settled)
            or self._catalog.has(chunk_id)
        )

    def then(self, action: Callable[[], None]) -> None:
        """Do this once everything taken so far is durable."""
        self._filling.after.append(action)

    def _close_pack(self) -> None:
        while len(self._flying) >= self._archive.storage.uploads:
            self._settle()
        filling, self._filling = self._filling, Filling()
        if filling.pack is None and not self._flying:
            self._keep(filling)
            return
        if self._background is None:
            from concurrent.futures import (
                ThreadPoolExecutor,
            )  # here, for most runs find little or nothing changed

            self._background = ThreadPoolExecutor(self._archive.storage.uploads)
        finish = filling.pack.finish if filling.pack is not None else lambda: None
        self._flying.append((self._background.submit(finish), filling))

    def _settle(self) -> None:
        """Wait for the first of the packs that are being brought to disk."""
        future, filled = self._flying[0]
        future.result()
        self._flying.popleft()
        self._keep(filled)

    def _keep(self, filled: Filling) -> None:
        """Remember a pack that is on disk, until it is time to record those there are."""
        self._settled.append(filled)
        late = time.monotonic() - self._recorded >= RECORD_SECONDS
        if late or sum(filling.entries for filling in self._settled) >= RECORD_ENTRIES:
            self._record()

    def _record(self) -> None:
        """Note what is on disk, and do what waits for it."""
        for filled in self._note():
            for action in filled.after:
                action()
        self._recorded = time.monotonic()

    def _note(self) -> list[Filling]:
        """Bring the packs that are on disk into the catalog, and their entries into the partial
        sessions.
        """
        settled, self._settled = self._settled, []
        self._catalog.begin()
        for filled in settled:
            if filled.pack is not None:
                number = self._catalog.add_pack(filled.pack.name, filled.pack.size)
                self._catalog.add_all(
                    number, [(chunk_id, *place) for chunk_id, place in filled.places.items()]
                )
        self._catalog.commit()
        for filled in settled:
            for group in filled.groups:
                if group.entries:
                    group.partial.append(group.entries[-1][0] + 1, group.entries)
        return settled

    def flush(self) -> None:
        """Bring everything to disk and do all that waits for it."""
        self._close_pack()
        while self._flying:
            self._settle()
        self._record()

    def finish(self) -> None:
        """The same at the end of a run: all that was stored has a session, or a partial one, that
        refers to it.
        """
        self.flush()
        self._catalog.marks.storing = False

    def close(self) -> None:
        """End; what is not on disk yet is given up."""
        for future, _ in self._flying:
            future.cancel()
        if self._background is not None:
            self._background.shutdown(wait=True)
        for filling in (self._filling, *(filling for _, filling in self._flying)):
            if filling.pack is not None:
                filling.pack.abandon()
        self._catalog.rollback()
        try:
            self._note()
        except (OSError, sqlite3.Error):  # of the disk or the catalog that made an end of it
            self._catalog.rollback()
