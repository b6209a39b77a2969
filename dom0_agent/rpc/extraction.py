# SPDX-License-Identifier: GPL-2.0-or-later
"""Extract: read what may have changed, hash, compare, compress and seal it on a few threads, in
order, in flat memory.
"""

import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from common.durable import UNREADABLE, closing_fd
from common.pipeline import in_order
from dom0_agent.bitmap import Bitmap, grains_per_chunk
from dom0_agent.config import Config
from dom0_agent.keyring import ArchiveKey
from dom0_agent.rpc.batches import Batch, in_chunks, joined, spans
from dom0_agent.sources import Range, Source, Unreadable
from dom0_agent.tracking.chunk_ids import CommittedIds, KnownIds
from dom0_agent.tracking.pending_log import PendingLog
from dom0_agent.tracking.progress import Pending
from wire.chunks import ID_SIZE, ZERO_ID, ChunkIds, Sealer
from wire.merkle import PAGE_IDS, Tree, chunk_count
from wire.messages import CHUNK_FRAME, CHUNK_HEAD_SIZE, KIND_CHUNK
from wire.status import Code, Refused
from wire.stream import Writer

BATCH_BYTES = 1 << 20
"""Bytes read at a time, unless a chunk is larger."""
IN_FLIGHT_BYTES = 24 << 20
"""Bytes read and not yet written out, at most, whatever the chunk size and the number of threads.
"""
WATCH = 5.0
"""Seconds between two looks at whether the session is still wanted."""
REMEMBERED = 1 << 17
"""Ids remembered as sent in this call, so that a repeated chunk is compressed and sent once."""


class Result(NamedTuple):
    """What became of a chunk: ``sealed`` is empty for zeros and for what the caller holds
    already.
    """

    number: int
    id: bytes
    sealed: bytes


class Extraction:
    """One Extract call for a pending session. ``known_page`` gives the ids the caller holds, for a
    full session. ``has_sent``: whether any chunk was on its way when it ended, or failed.
    """

    def __init__(
        self,
        archive: ArchiveKey,
        pending: Pending,
        source: Source,
        changed: Bitmap,
        ids: CommittedIds,
        known_page: Callable[[int], bytes] | None,
    ) -> None:
        self._pending, self._source, self._changed, self._ids = pending, source, changed, ids
        self._keys = archive.domain_keys(bytes.fromhex(pending.dedup_domain))
        self._chunk_size = archive.chunk_size
        self._chunks = chunk_count(pending.size, archive.chunk_size)
        self._known = KnownIds((known_page or _no_ids) if pending.full else ids.page)
        self._chunk_ids = ChunkIds(self._keys, archive.chunk_size)
        self._sent: set[bytes] = set()
        self.has_sent = False
        self._buffers = threading.local()

    def run(
        self,
        log: PendingLog,
        first: int,
        out: Writer,
        config: Config,
        wanted: Callable[[], bool] = lambda: True,
    ) -> bytes:
        """Write the frames of chunks from ``first`` on, complete the log, return the root of the
        image. Unreadable where the snapshot has a bad sector.

        ``wanted`` says whether the session is still pending; Refused soon after it is not.
        """
        # Of this call alone: its random salt selects the key, so that a chunk number, which is the
        # nonce, comes once under one key, also where a call resumes what another began.
        sealer = Sealer(self._keys, config.compression_level, config.chunk_padding)
        # One more than processors, for the disk: with scattered reads two threads waited for it a
        # third of their time (100 MiB changed: 1.21 s with two, 1.09 with three, 1.15 with four).
        threads = min(config.threads, os.cpu_count() or 1) + 1
        log.rewind(first)
        batch_bytes = max(BATCH_BYTES, self._chunk_size)
        # Two for each thread: four cost 5 MiB more, and saved nothing.
        ahead = max(2, min(2 * threads + 2, IN_FLIGHT_BYTES // batch_bytes))
        # Past the page cache: a clone has no pages there though its original has, and 3 GiB of one
        # took 1.6 to 11 s through it, 0.6 s past it.
        with (
            closing_fd(self._source.open(self._pending.snapshot, direct=True)) as fd,
            _held_while(wanted, fd),
        ):
            most = batch_bytes // self._chunk_size
            plan = joined(self._plan(fd, log.position, most), most)
            work = partial(self._extract, fd, sealer)
            for batch, results in in_order(work, plan, threads, ahead):
                self._emit(results, first, out)
                log.append(batch.end, [(result.number, result.id) for result in results])
        if log.position < self._chunks:
            log.append(self._chunks, [])
        log.sync()
        tree = Tree(self._keys)
        pages = self._ids.digests(log.entries(), self._pending.full, self._chunks)
        return tree.root(self._pending.size, self._chunk_size, pages)

    def _emit(self, results: list[Result], first: int, out: Writer) -> None:
        parts = []
        for result in results:
            if result.number < first:
                continue
            length = CHUNK_HEAD_SIZE + len(result.sealed)
            parts += [CHUNK_FRAME.pack(KIND_CHUNK, length, result.number, result.id), result.sealed]
            # Only what is on its way already: the caller reads in order, and is sent an id without
            # data only after it was sent the data.
            if len(self._sent) < REMEMBERED:
                self._sent.add(result.id)
        out.writelines(parts)
        self.has_sent = self.has_sent or bool(parts)

    def _plan(self, fd: int, position: int, most: int) -> Iterator[Batch]:
        """Everything that may differ, in order, from chunk ``position`` on."""
        changed = self._changed_from(position)
        for first, end, has_data in spans(changed, partial(self._data_in, fd)):
            if not has_data:
                yield from self._holes(first, end)
                continue
            for number in range(first, end, most):
                yield self._batch(number, min(number + most, end), True)

    def _changed_from(self, position: int) -> Iterator[Range]:
        """Runs of chunks that may have changed, from ``position`` on."""
        if self._pending.full:
            yield position, self._chunks
            return
        for first, end in self._changed.runs(grains_per_chunk(self._chunk_size), self._chunks):
            if position < end:
                yield max(first, position), end

    def _data_in(self, fd: int, first: int, end: int) -> Iterator[Range]:
        start, beyond = first * self._chunk_size, min(end * self._chunk_size, self._pending.size)
        return in_chunks(self._source.data_ranges(fd, start, beyond), self._chunk_size)

    def _holes(self, first: int, end: int) -> Iterator[Batch]:
        """Chunks that are holes now: only those matter that were not zeros before."""
        if self._pending.full:
            return
        end = min(end, self._ids.count)
        while first < end:
            stop = min(end, first - first % PAGE_IDS + PAGE_IDS)
            batch = self._batch(first, stop, False)
            if any(batch.known):
                yield batch
            first = stop

    def _batch(self, first: int, end: int, data: bool) -> Batch:
        return Batch(
            ((first, end),), b"".join(self._known.of(number) for number in range(first, end)), data
        )

    def _extract(self, fd: int, sealer: Sealer, batch: Batch) -> tuple[Batch, list[Result]]:
        """Read a batch, and seal what the caller lacks of it."""
        known = [batch.known[at : at + ID_SIZE] for at in range(0, len(batch.known), ID_SIZE)]
        numbered = zip(batch.numbers(), known, strict=True)
        if not batch.data:
            zeros = (number for number, known_id in numbered if known_id != ZERO_ID)
            return batch, [Result(number, ZERO_ID, b"") for number in zeros]
        # Read by the thread that computes: what another had read ahead was out of this processor's
        # cache by then, and a full backup took longer.
        results = []
        view = self._read(fd, batch)
        for at, (number, known_id) in enumerate(numbered):
            chunk = view[at * self._chunk_size : (at + 1) * self._chunk_size]
            chunk_id = self._chunk_ids.of(chunk)
            if self._pending.full:
                if chunk_id == ZERO_ID:  # a full session starts from nothing but zeros
                    continue
            elif chunk_id == known_id:
                continue
            held = chunk_id in (ZERO_ID, known_id) or chunk_id in self._sent
            results.append(
                Result(number, chunk_id, b"" if held else sealer.seal(number, chunk_id, chunk))
            )
        return batch, results

    def _read(self, fd: int, batch: Batch) -> memoryview:
        """The bytes of a batch, padded with zeros at the volume's end, in this thread's
        (page-aligned) buffer.
        """
        buffer: mmap.mmap | None = getattr(self._buffers, "buffer", None)
        if buffer is None:
            # Whole pages, as O_DIRECT wants them, and used again: each new mapping is faulted in.
            buffer = self._buffers.buffer = mmap.mmap(-1, max(BATCH_BYTES, self._chunk_size))
        view, at = memoryview(buffer)[: batch.count * self._chunk_size], 0
        for first, end in batch.runs:
            length = (end - first) * self._chunk_size
            self._read_run(fd, view[at : at + length], first * self._chunk_size)
            at += length
        return view

    def _read_run(self, fd: int, view: memoryview, start: int) -> None:
        within = min(len(view), self._pending.size - start)
        try:
            self._read_all(fd, view, start, within)
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            text = f"its snapshot cannot be read from byte {start} on: {error.strerror}"
            raise Unreadable(Code.SOURCE_FAILED, text) from None
        if within < len(view):
            view[within:] = bytes(len(view) - within)

    @staticmethod
    def _read_all(fd: int, view: memoryview, start: int, within: int) -> None:
        done = _read_into(fd, view, start)
        while done < within:  # short, or refused for its alignment
            _read_through_cache(fd)
            got = _read_into(fd, view[done:within], start + done)
            if got == 0:
                raise OSError(f"snapshot ends at byte {start + done}")
            done += got


def _no_ids(index: int) -> bytes:
    """A page of the ids that a caller holds who told none."""
    return b""


@contextmanager
def _held_while(wanted: Callable[[], bool], fd: int) -> Iterator[None]:
    """Let go of an open snapshot as soon as it is not wanted any more, even while the caller takes
    what it is sent as slowly as it can: as long as it is open, the storage keeps what it holds."""
    over, gone = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(WATCH):
            if not wanted():
                gone.set()
                _make_useless(fd)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except OSError:
        if not gone.is_set():
            raise
    finally:
        over.set()
        watcher.join()
    if gone.is_set():
        raise Refused(Code.NO_SESSION, "the session was dropped while it was extracted")


def _make_useless(fd: int) -> None:
    """Close what a descriptor stands for while others use its number: from now on they get
    errors.
    """
    # Not closed: the number could be that of the next file that is opened, and a thread that reads
    # just now would read from that and seal it.
    read_end, write_end = os.pipe()
    os.dup2(read_end, fd, inheritable=False)
    os.close(read_end)
    os.close(write_end)


def _read_into(fd: int, view: memoryview, offset: int) -> int:
    try:
        return os.preadv(fd, [view], offset)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _read_through_cache(fd)
        return os.preadv(fd, [view], offset)


def _read_through_cache(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)
