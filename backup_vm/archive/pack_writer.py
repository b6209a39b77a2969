# SPDX-License-Identifier: GPL-2.0-or-later
"""Storing what arrives: chunks into packs, entries into partial sessions.

The stages of a pack, and of all that waits for it::

    filling --- full --------------------> handed over: brought to disk, or elsewhere, in the
                                           background while the next one fills
    handed over --- durable -------------> held
    held --- about once a second --------> written down: its chunks in the catalog, its entries in
                                           the partial sessions
    written down ------------------------> what was to be done when it is durable is done: sessions
                                           that end in it are stored

This order is what "no session without its chunks" rests on: whatever is cut off anywhere leaves
chunks that nothing refers to, and never the other way round.
"""

import sqlite3
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from backup_vm.archive.archive import Archive
from backup_vm.archive.pack_size import pack_size
from backup_vm.archive.packs import NewPack, Packed, PackReader
from backup_vm.archive.partial import Partial
from backup_vm.errors import DamagedError
from wire.chunks import ZERO_ID

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

MAX_ENTRIES = 1 << 14
"""Entries after which a pack is handed over, however small, so that memory stays bounded: zeros and
chunks that are there already count, too, and fill no pack.
"""
RECORD_SECONDS, RECORD_ENTRIES = 1.0, 1 << 16
"""Seconds and entries after which packs that are held are recorded: what a run that is killed must
send again. Each recording is a transaction that waits for the disk, about 9 ms; a pack of 32 MiB
may take less than a tenth of a second to fill.
"""
FIRST = 4 << 20
"""Bytes of the first pack of a run elsewhere; each is twice as large as the one before until they
are full. Until the first is handed over nothing is on its way, and the line waits, and it waits
again where the next one takes longer to fill than what is on its way takes: so it never does where
dom0 sends twice as fast as the line takes. At 100 Mbit/s a pack of 64 MiB takes five seconds.
"""
LONGEST, MEANWHILE = 120.0, 1 << 20
"""Seconds for which nothing is taken because a pack is full and none of those before it has got
where it goes; and bytes that are taken after that, into the same pack. dom0 gives up a caller that
takes less than 1 MiB while it waits for 300 seconds, and over a slow line four packs take longer.
"""
MOST_READ = 1 << 16
"""Chunks of which it is remembered that they were read; the others are read again."""


class Group:
    """Entries of one partial session that go with one pack."""

    def __init__(self, partial: Partial) -> None:
        self.partial = partial
        self.entries: list[tuple[int, bytes]] = []


class Filling:
    """A pack and all that waits for it to be durable."""

    def __init__(self) -> None:
        self.pack: NewPack | None = None
        self.places: dict[bytes, tuple[int, int]] = {}
        self.groups: list[Group] = []
        self.entries = 0
        self.when_durable: list[Callable[[], None]] = []


class PackWriter:
    """Takes in the chunks of one run, of any number of volumes one after another."""

    def __init__(self, archive: Archive) -> None:
        self._archive, self._catalog = archive, archive.catalog
        self._filling = Filling()
        self._in_flight: deque[tuple[Future[None], Filling]] = deque()
        self._held: list[Filling] = []
        self._recorded = time.monotonic()
        self._background: ThreadPoolExecutor | None = None
        self._full = 0
        """Bytes of a full pack; 0 as long as nobody had to know."""
        self._enough = 0
        """Bytes at which the pack that is being filled is handed over."""
        self._more = 0
        """Bytes that are taken before there is another look at whether a pack may be on its way."""
        self._read: set[bytes] = set()
        """Chunks that were found sound, see _stored."""
        self._reader = PackReader(archive.storage)
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
                # Durable before the first pack is: it says that chunks may be left over here.
                self._catalog.marks.storing = True
                self._begin()
                filling.pack = NewPack(self._archive.storage, self._archive.parameters.archive)
            filling.places[chunk_id] = (filling.pack.add(chunk_id, sealed), len(sealed))
            self.stored += len(sealed)
        if not filling.groups or filling.groups[-1].partial is not partial:
            filling.groups.append(Group(partial))
        # In one step: Ctrl-C may come between any two.
        filling.groups[-1].entries.append((number, chunk_id))
        filling.entries += 1
        self._more -= len(chunk_id) + len(sealed)
        if self._more <= 0 and (
            filling.entries >= MAX_ENTRIES
            or (filling.pack is not None and filling.pack.size >= self._enough)
        ):
            if self._wait_for_place():
                if filling.pack is not None:
                    self._enough = min(self._full, 2 * self._enough)
                self._hand_over()
            else:
                self._more = MEANWHILE

    def _begin(self) -> None:
        """Find out how large packs become, which a run that stores nothing need not know."""
        if not self._full:
            self._full = self._enough = pack_size(self._archive)
            if self._archive.storage.elsewhere:
                self._enough = min(self._full, FIRST)

    def takes_at_once(self, size: int) -> bool:
        """Whether so many bytes of chunks are taken without a wait for packs on their way."""
        if size == 0:
            return True
        self._begin()
        on_their_way = sum(not future.done() for future, _ in self._in_flight)
        places = max(0, self._archive.storage.uploads - on_their_way)
        filled = self._filling.pack.size if self._filling.pack is not None else 0
        packs = (min(self._full, self._enough << number) for number in range(places + 1))
        return size <= sum(packs) - filled

    def holds(self, chunk_id: bytes) -> bool:
        """Whether a chunk is in the archive, or on its way there."""
        return (
            chunk_id in self._filling.places
            or any(chunk_id in filling.places for _, filling in self._in_flight)
            or any(chunk_id in filling.places for filling in self._held)
            or self._stored(chunk_id)
        )

    def _stored(self, chunk_id: bytes) -> bool:
        """Whether a pack has a chunk. While a session cannot be read, the catalog lists also what
        no other session needs; of that, some may have been given back, and where the pack was
        copied since, no hole tells: there it is read.
        """
        if not self._catalog.has(chunk_id):
            return False
        if not self._archive.damaged or chunk_id in self._read:
            return True
        place = self._catalog.places([chunk_id]).get(chunk_id)  # in no pack that there is, at times
        sound = place is not None and self._reader.sound(
            place.pack, Packed(chunk_id, place.offset, place.length, b"")
        )
        if not sound:
            self._catalog.remove(chunk_id)
        elif len(self._read) < MOST_READ:
            self._read.add(chunk_id)
        return sound

    def when_durable(self, action: Callable[[], None]) -> None:
        """Do this once everything taken so far is durable."""
        self._filling.when_durable.append(action)

    def _wait_for_place(self) -> bool:
        """Wait until another pack may be on its way, but not for ever; whether it may be."""
        if len(self._in_flight) < self._archive.storage.uploads:
            return True
        from concurrent.futures import wait  # see _hand_over

        return bool(wait([self._in_flight[0][0]], LONGEST).done)

    def _hand_over(self) -> None:
        """Give the pack that was filled to the background, and begin another.

        No more than ``uploads`` are on their way at once: what is uploaded is on this machine's
        disk until it is there.
        """
        while len(self._in_flight) >= self._archive.storage.uploads:
            self._await_oldest()
        filling, self._filling = self._filling, Filling()
        if filling.pack is None and not self._in_flight:
            self._hold(filling)
            return
        # Entries without a pack of their own wait their turn behind those in flight, too: a partial
        # session's entries are written in order, or a resumed one would lack some in its middle.
        if self._background is None:
            # Imported here: most runs find little or nothing changed.
            from concurrent.futures import ThreadPoolExecutor

            self._background = ThreadPoolExecutor(self._archive.storage.uploads)
        finish = filling.pack.finish if filling.pack is not None else lambda: None
        self._in_flight.append((self._background.submit(finish), filling))

    def _await_oldest(self) -> None:
        """Wait for the first of the packs that were handed over; raise what stopped it."""
        future, filled = self._in_flight[0]
        future.result()
        self._in_flight.popleft()
        self._hold(filled)

    def _hold(self, filled: Filling) -> None:
        """Keep a pack that is durable, until it is time to record those that are held."""
        self._held.append(filled)
        late = time.monotonic() - self._recorded >= RECORD_SECONDS
        if late or sum(filling.entries for filling in self._held) >= RECORD_ENTRIES:
            self._record()

    def _record(self) -> None:
        """Write down what is held, and do what waits for it."""
        for filled in self._write_down():
            for action in filled.when_durable:
                action()
        self._recorded = time.monotonic()

    def _write_down(self) -> list[Filling]:
        """Bring the packs that are held into the catalog, and their entries into the partial
        sessions; returns them.

        The catalog first: entries in a partial session whose chunks no catalog knows would be cut
        off when it is resumed.
        """
        held, self._held = self._held, []
        self._catalog.begin()
        for filled in held:
            if filled.pack is not None:
                number = self._catalog.add_pack(filled.pack.name, filled.pack.size)
                self._catalog.add_all(
                    number, [(chunk_id, *place) for chunk_id, place in filled.places.items()]
                )
        self._catalog.commit()
        for filled in held:
            for group in filled.groups:
                if group.entries:
                    group.partial.append(group.entries[-1][0] + 1, group.entries)
        return held

    def flush(self) -> None:
        """Bring everything to disk and do all that waits for it."""
        self._hand_over()
        while self._in_flight:
            self._await_oldest()
        self._record()

    def finish(self) -> None:
        """The same at the end of a run: all that was stored has a session, or a partial one, that
        refers to it.
        """
        self.flush()
        self._catalog.marks.storing = self._archive.left_listed

    def close(self) -> None:
        """End; what is not on disk yet is given up.

        On a full disk, too: half a pack is of use only with its index, its rows in the catalog and
        its entries in the partial sessions, and each of these needs room as well.
        """
        self._reader.close()
        for future, _ in self._in_flight:
            future.cancel()
        if self._background is not None:
            self._background.shutdown(wait=True)
        for filling in (self._filling, *(filling for _, filling in self._in_flight)):
            if filling.pack is not None:
                filling.pack.abandon()
        self._catalog.rollback()
        try:
            self._write_down()
        except (OSError, sqlite3.Error):  # of the disk or the catalog that made an end of it
            self._catalog.rollback()
