# SPDX-License-Identifier: GPL-2.0-or-later
"""Getting a session's image out of the archive: its sealed chunks, or opened here with the key."""

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from backup_vm import failures
from backup_vm.archive import lookup
from backup_vm.archive.archive import Archive
from backup_vm.archive.catalog import Place
from backup_vm.archive.image import Image
from backup_vm.archive.packs import PackReader
from backup_vm.archive.sessions import Session
from backup_vm.errors import DamagedError, WrongKeyError
from backup_vm.terminal import output
from backup_vm.terminal.progress import Progress
from backup_vm.unsealing import AnyKeys, unseal
from common.image_writer import WRITE_BYTES, ImageWriter
from common.pipeline import in_order
from common.text import session_name
from wire.chunks import ZERO_ID, DomainKeys, NotAuthentic
from wire.grants import NotGranted
from wire.merkle import DIGEST_SIZE, PAGE_IDS, Tree, chunk_count
from wire.open_chunks import (
    AHEAD_BYTES,
    ChunkNotAuthentic,
    ChunkOpener,
    SealedChunk,
    open_chunks,
)
from wire.records import Record
from wire.wanted import Wanted

if TYPE_CHECKING:
    from backup_vm.archive.intake import Entry

THREADS = min(os.cpu_count() or 1, 4)


class _Missing(DamagedError):
    def __init__(self, name: str, number: int, chunk_id: bytes) -> None:
        super().__init__(
            f"{name}: chunk {number} ({chunk_id.hex()[:16]}) is missing from the archive",
            "run: sparsebak scrub",
        )


def sealed_chunks(
    archive: Archive,
    image: Image,
    name: str,
    in_file_order: bool = False,
    only: Wanted | None = None,
) -> Iterator[tuple[list[bytes], Iterator[SealedChunk]]]:
    """For each page of 1,024 chunks (or, in file order, each larger window): its ids, and the
    chunks with data; ``only`` those of them that are in it.
    """
    with PackReader(archive.storage) as reader, archive.looking.present(image.session):
        for first, ids in image.windows():
            places: dict[bytes, Place] = {}
            # Of a TiB little may be wanted, and to look at each of its chunks takes seconds.
            if only is None or only.any(first, first + len(ids)):
                asked = (i for n, i in enumerate(ids, first) if only is None or n in only)
                places = lookup.places(archive, image.session, (i for i in asked if i != ZERO_ID))
            step = len(ids) if in_file_order else PAGE_IDS
            for at in range(0, len(ids), step):
                wanted = _wanted(ids[at : at + step], first + at, places, name, only)
                if in_file_order:
                    wanted.sort(key=lambda item: item[2])
                yield ids[at : at + step], _read(archive, reader, image.session, wanted)


def _wanted(
    ids: list[bytes], first: int, places: dict[bytes, Place], name: str, only: Wanted | None
) -> list[tuple[int, bytes, Place]]:
    wanted: list[tuple[int, bytes, Place]] = []
    if only is not None and not only.any(first, first + len(ids)):
        return wanted
    for i, chunk_id in enumerate(ids):
        if chunk_id == ZERO_ID or (only is not None and first + i not in only):
            continue
        if chunk_id not in places:
            raise _Missing(name, first + i, chunk_id)
        wanted.append((first + i, chunk_id, places[chunk_id]))
    return wanted


def _read(
    archive: Archive, reader: PackReader, session: Session, wanted: list[tuple[int, bytes, Place]]
) -> Iterator[SealedChunk]:
    with archive.looking.present(session):
        for number, chunk_id, place in wanted:
            yield SealedChunk(number, chunk_id, lookup.read(archive, reader, chunk_id, place))


class Proven(NamedTuple):
    """An image whose record and ids have proven authentic. Safe to share between threads.

    The ids are read a second time where its chunks are: they are compared again then, for what is
    in the store may have become something else meanwhile.
    """

    record: Record
    keys: DomainKeys
    name: str
    tree: Tree
    pages: bytes
    """Digests of all pages of ids, 32 bytes each."""

    def check(self, first: int, ids: list[bytes]) -> None:
        """Raise DamagedError unless these are the ids of whole pages from chunk number ``first``
        on.
        """
        for at in range(0, len(ids), PAGE_IDS):
            page = (first + at) // PAGE_IDS * DIGEST_SIZE
            digest = self.tree.page(b"".join(ids[at : at + PAGE_IDS]))
            if digest != self.pages[page : page + DIGEST_SIZE]:
                raise DamagedError(f"{self.name}: the archive changed while it was read")


def open_image(archive: Archive, image: Image, keys: AnyKeys, name: str) -> Proven:
    """Check a session's record and ids with the archive's keys, or a grant; raise DamagedError, and
    WrongKeyError for a session that the grant is not for.
    """
    path = archive.storage.describe(image.session.file)
    try:
        record, domain_keys = unseal(image.session.record, keys)
    except NotGranted as error:
        raise WrongKeyError(f"{name} {image.session.name}: {error}") from None
    except NotAuthentic as error:
        raise DamagedError(f"{path}: {error}") from None
    if record.archive != archive.parameters.archive:
        raise DamagedError(f"{path} belongs to another archive")
    return prove_image(archive, image, record, domain_keys, name)


def prove_image(
    archive: Archive, image: Image, record: Record, keys: DomainKeys, name: str
) -> Proven:
    """Check the ids of a session whose record has been opened; raise DamagedError.

    From here on the keys of the record's deduplication domain are enough.
    """
    proven = prove_ids((ids for _, ids in image.windows()), record, keys, name)
    if proven is None:
        image.check()
        raise not_complete(name, record)
    return proven


def prove_ids(
    windows: Iterable[list[bytes]], record: Record, keys: DomainKeys, name: str
) -> Proven | None:
    """Compare all ids of an image, in windows of whole pages, with its record's root; None where
    they are not those.
    """
    tree, pages = Tree(keys), bytearray()

    def digests() -> Iterator[bytes]:
        for ids in windows:
            for at in range(0, len(ids), PAGE_IDS):
                digest = tree.page(b"".join(ids[at : at + PAGE_IDS]))
                pages.extend(digest)
                yield digest

    if tree.root(record.size, record.chunk_size, digests()) != record.root:
        return None
    return Proven(record, keys, name, tree, bytes(pages))


def not_complete(name: str, record: Record) -> DamagedError:
    """What to say of an image whose ids do not give its record's root."""
    return DamagedError(
        f"{name}: session {session_name(record.time)} is not complete or not authentic: its chunk"
        " ids do not match"
    )


def read_image(
    archive: Archive,
    image: Image,
    keys: AnyKeys,
    name: str,
    progress: Progress,
    sink: Callable[[int, list[bytes]], None] | None,
) -> Record:
    """Open every chunk of a session with the key and hand offset and chunks to ``sink``, in no
    particular order.

    Without a sink this verifies. Raises DamagedError naming what is wrong.
    """
    proven = open_image(archive, image, keys, name)
    read_chunks(archive, image, proven, progress, sink)
    return proven.record


def read_chunks(
    archive: Archive,
    image: Image,
    proven: Proven,
    progress: Progress,
    sink: Callable[[int, list[bytes]], object] | None,
    ordered: bool = False,
    only: Wanted | None = None,
) -> None:
    """Open every chunk of an image whose record and ids have proven authentic, or ``only`` some;
    see read_image.

    ``ordered``: by offset.
    """
    size = proven.record.chunk_size

    def everything() -> Iterator[SealedChunk]:
        end = 0
        for window, chunks in sealed_chunks(archive, image, proven.name, not ordered, only):
            proven.check(end, window)
            first, end = end, end + len(window)
            yield from chunks
            done = len(window) if only is None else only.count(first, end)
            progress.advance(done * size)

    open_all(everything(), proven, sink, ordered)


def open_all(
    chunks: Iterable[SealedChunk],
    proven: Proven,
    sink: Callable[[int, list[bytes]], object] | None = None,
    ordered: bool = False,
) -> None:
    """Open chunks of a proven image, which are drawn in order in the calling thread; see
    open_chunks.

    Raises DamagedError for one that is not authentic.
    """
    try:
        open_chunks(chunks, proven.record, proven.keys, THREADS, sink, ordered)
    except ChunkNotAuthentic as error:
        raise not_authentic(proven.name, error) from None


def opened(entries: "Iterable[Entry]", proven: Proven) -> "Iterator[Entry]":
    """The same entries, each after its chunk, if it has one, has opened with the key.

    Drawn a few MiB ahead, in the calling thread. Raises ChunkNotAuthentic.
    """
    size = proven.record.chunk_size
    opener, source = ChunkOpener(proven.keys, size), iter(entries)

    def work(group: "list[Entry]") -> "list[Entry]":
        for entry in group:
            if entry.sealed:
                opener.open(SealedChunk._make(entry))
        return group

    most = max(1, WRITE_BYTES // size)
    ahead = max(2, min(2 * THREADS + 2, AHEAD_BYTES // (most * size)))
    groups = iter(lambda: list(islice(source, most)), [])
    for group in in_order(work, groups, THREADS, ahead):
        yield from group


def not_authentic(name: str, error: ChunkNotAuthentic) -> DamagedError:
    """What to say of a chunk that does not open although its checksum is right."""
    return DamagedError(
        f"{name}: {error}", "to see which sessions are sound: sparsebak verify --session all"
    )


def assemble(
    archive: Archive, image: Image, keys: AnyKeys, name: str, target: Path, progress: Progress
) -> Record:
    """Write a session as a sparse raw image, beside the target first, so that a failure leaves no
    half of one.
    """
    with output.replacing(target) as beside:
        try:
            file = ImageWriter(beside, image.session.clear.size)
        except OSError as error:
            raise failures.cannot_write(beside, error) from None
        try:
            record = read_image(archive, image, keys, name, progress, file.write)
            file.sync()
        finally:
            file.close()
    return record


def image_bytes(image: Image) -> int:
    """Bytes of an image, in whole chunks, as progress counts them."""
    clear = image.session.clear
    return chunk_count(clear.size, clear.chunk_size) * clear.chunk_size
