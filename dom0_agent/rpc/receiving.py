# SPDX-License-Identifier: GPL-2.0-or-later
"""Restore and Verify: take a session from the backup VM and believe nothing that the archive's key
does not prove.

Order on the wire: record; all chunk ids; then page by page the same 1,024 ids again and, for each
that is not zero, length and sealed chunk; END. How much of each there is follows from the record,
which is authenticated before anything else is read. The ids come twice so that they are proven
against the root before any chunk is taken, in flat memory.

Where the caller can wait for it, it is told after the first pass which chunks are wanted: those
that are not certain to be in the volume already (tracking/present.py). Only these come then, and
only the pages of ids that have any.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from common.differing import runs
from dom0_agent.keyring import ArchiveKey
from dom0_agent.tracking.present import Present
from wire.chunks import ID_SIZE, OVERHEAD, ZERO_ID, NotAuthentic
from wire.merkle import PAGE_IDS, Tree, chunk_count, page_count
from wire.messages import END, LENGTH
from wire.open_chunks import ChunkNotAuthentic, SealedChunk, open_chunks
from wire.records import RECORD_SIZE, Record, open_record
from wire.status import Code, Refused
from wire.stream import CutShort, Reader, read_exactly, read_view
from wire.wanted import Wanted

if TYPE_CHECKING:  # Verify has no target, and so never loads one
    from dom0_agent.targets.interface import Replacement


def read_record(stream: Reader, archive: ArchiveKey) -> Record:
    """Read and authenticate the record of a session of this archive, or raise Refused."""
    try:
        record = open_record(read_exactly(stream, RECORD_SIZE), archive.keys())
    except NotAuthentic as error:
        raise Refused(Code.NOT_AUTHENTIC, f"session record: {error}") from None
    if record.archive != archive.id or record.chunk_size != archive.chunk_size:
        raise Refused(Code.NOT_AUTHENTIC, "session record of another archive")
    return record


def receive(
    stream: Reader,
    archive: ArchiveKey,
    record: Record,
    target: "Replacement | None",
    threads: int,
    present: Present | None = None,
    tell: Callable[[Wanted], None] | None = None,
) -> None:
    """Check a whole session as it comes in, and write it to ``target`` if there is one. Raise
    Refused.

    ``tell`` says to the caller which chunks are wanted: with ``present``, which is what the target
    holds already, those that differ from it, else all.
    """
    keys = record.domain_keys(archive.keys())
    try:
        tree, wanted = Tree(keys), None
        pages = _proven_pages(stream, tree, record, present)
        if tell is not None:
            every = Wanted(chunk_count(record.size, record.chunk_size), every=True)
            wanted = present.wanted if present is not None else every
            tell(wanted)
        clear = target.clear if target is not None and present is not None else None
        arriving = _arriving(stream, tree, record, pages, wanted, clear)
        write, ordered = (target.write, target.ordered) if target is not None else (None, False)
        open_chunks(arriving, record, keys, threads, write, ordered)
        if read_exactly(stream, len(END)) != END:
            raise Refused(Code.BAD_REQUEST, "no end mark where the session ends")
    except ChunkNotAuthentic as error:
        raise Refused(Code.NOT_AUTHENTIC, str(error), error.number) from None
    except CutShort as error:
        raise Refused(Code.BAD_REQUEST, f"the session was cut short: {error}") from None


def _proven_pages(
    stream: Reader, tree: Tree, record: Record, present: Present | None
) -> list[bytes]:
    """The digests of all pages of ids, which give the record's root."""
    chunks, pages = chunk_count(record.size, record.chunk_size), []
    for index in range(page_count(chunks)):
        untrusted_ids = _ids(stream, index, chunks)
        pages.append(tree.page(untrusted_ids))
        # Not proven yet. What comes of it is used only once they all are, and the ids that are
        # used then are the same.
        if present is not None:
            present.compare(index, untrusted_ids)
    if tree.root(record.size, record.chunk_size, pages) != record.root:
        raise Refused(Code.NOT_AUTHENTIC, "the chunk ids do not match the record's root")
    return pages


def _arriving(
    stream: Reader,
    tree: Tree,
    record: Record,
    pages: list[bytes],
    wanted: Wanted | None,
    clear: Callable[[int, int], None] | None,
) -> Iterator[SealedChunk]:
    """The chunks that come, of all that are ``wanted``; ``clear`` is given the bytes that are
    wanted and zeros.
    """
    # Kept of the first pass are 32 bytes a page, not the ids, which would be 256 MiB for a TiB: the
    # ids come again, and have to be the same.
    chunks = chunk_count(record.size, record.chunk_size)
    for index, page in enumerate(pages):
        first = index * PAGE_IDS
        if wanted is not None and not wanted.any(first, min(first + PAGE_IDS, chunks)):
            continue
        ids = _ids(stream, index, chunks)
        if tree.page(ids) != page:
            raise Refused(
                Code.NOT_AUTHENTIC,
                f"chunk ids from chunk {first} on are not those sent before",
                first,
            )
        zeros = []
        for number in range(first, first + len(ids) // ID_SIZE):
            if wanted is not None and number not in wanted:
                continue
            at = (number - first) * ID_SIZE
            chunk_id = ids[at : at + ID_SIZE]
            if chunk_id == ZERO_ID:
                zeros.append(number)
                continue
            yield SealedChunk(number, chunk_id, _sealed(stream, record.chunk_size, number))
        if clear is not None:
            for begin, end in runs(zeros):
                clear(begin * record.chunk_size, min(end * record.chunk_size, record.size))


def _ids(stream: Reader, index: int, chunks: int) -> bytes:
    return read_exactly(stream, min(PAGE_IDS, chunks - index * PAGE_IDS) * ID_SIZE)


def _sealed(stream: Reader, chunk_size: int, number: int) -> bytes | memoryview:
    (untrusted_length,) = LENGTH.unpack(read_exactly(stream, LENGTH.size))
    if not OVERHEAD <= untrusted_length <= chunk_size + OVERHEAD:
        raise Refused(
            Code.BAD_REQUEST, f"chunk {number}: impossible length {untrusted_length}", number
        )
    return read_view(stream, untrusted_length)
