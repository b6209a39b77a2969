# SPDX-License-Identifier: GPL-2.0-or-later
"""One session in one portable file: sealed as it is (``sparsebak import`` takes it in elsewhere),
or opened as a tar file.

The sealed file is specified in docs/format.md, "Exported sessions".
"""

import hashlib
import tarfile
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from backup_vm.archive import parameters, sessions
from backup_vm.archive.archive import Archive
from backup_vm.archive.format import DIGEST_SIZE, EXPORT_MAGIC, NO_BASE, ExportHead
from backup_vm.archive.image import Image, chain, runs
from backup_vm.archive.intake import Entry, Incoming
from backup_vm.archive.pack_writer import PackWriter
from backup_vm.errors import DamagedError, SparsebakError
from backup_vm.jobs.reading import (
    THREADS,
    open_all,
    open_image,
    read_chunks,
    sealed_chunks,
)
from backup_vm.terminal.progress import Progress
from backup_vm.unsealing import AnyKeys
from wire import FORMAT, other_format
from wire.chunks import ID_SIZE, ZERO_ID, Keys, NotAuthentic
from wire.merkle import PAGE_IDS, Tree, chunk_count
from wire.messages import LENGTH, largest_frame
from wire.open_chunks import SealedChunk, open_chunks
from wire.records import RECORD_SIZE, Clear, open_record, read_clear
from wire.stream import CutShort, read_exactly

_MOST_PARAMETERS = 1 << 20
_BLOCK = 512


class _Hashed:
    """A stream whose bytes are hashed as they pass."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._digest = stream, hashlib.blake2b(digest_size=DIGEST_SIZE)

    def write(self, data: bytes | memoryview) -> None:
        self._stream.write(data)
        self._digest.update(data)

    def read(self, size: int, /) -> bytes:
        data = read_exactly(self._stream, size)
        self._digest.update(data)
        return data

    def digest(self) -> bytes:
        return self._digest.digest()


def export(
    archive: Archive,
    image: Image,
    name: str,
    out: IO[bytes],
    progress: Progress,
    keys: AnyKeys | None = None,
) -> None:
    """Write a session as one sealed file; raise DamagedError.

    With the archive's keys its record, its ids and each of its chunks prove authentic. Chunks are
    written as they are read, and open on other threads meanwhile: what was written up to an error
    is to be thrown away. Without keys nothing but checksums can be compared.
    """
    image.check()
    proven = None if keys is None else open_image(archive, image, keys, name)
    # Of an open archive the key is in archive.toml, and must not go along.
    sealed = archive.parameters.master is None
    described, hashed = archive.storage.read(parameters.NAME) if sealed else b"", _Hashed(out)
    hashed.write(ExportHead(archive.parameters.archive, len(described)).build())
    hashed.write(described)
    hashed.write(image.session.record)
    for first, ids in image.windows():
        if proven is not None:
            proven.check(first, ids)
        hashed.write(b"".join(ids))

    def written() -> Iterator[SealedChunk]:
        first = 0
        for ids, chunks in sealed_chunks(archive, image, name):
            if proven is not None:
                proven.check(first, ids)
            first += len(ids)
            for chunk in chunks:
                hashed.write(LENGTH.pack(len(chunk.untrusted_data)))
                hashed.write(chunk.untrusted_data)
                yield chunk
            progress.advance(len(ids) * image.session.clear.chunk_size)

    if proven is None:
        deque(written(), maxlen=0)
    else:
        open_all(written(), proven)
    out.write(hashed.digest())


def read_head(stream: IO[bytes], path: Path) -> tuple[_Hashed, bytes, Clear]:
    """The beginning of an exported file, up to its record; raise SparsebakError."""
    hashed = _Hashed(stream)
    try:
        raw_head = hashed.read(ExportHead.length())
        if raw_head[:7] == EXPORT_MAGIC[:7] and raw_head[7] != FORMAT:
            what, hint = other_format(raw_head[7])
            raise SparsebakError(f"{path} is an exported session of {what}", hint)
        head = ExportHead.parse(raw_head)
        if head.parameters_length > _MOST_PARAMETERS:
            raise NotAuthentic("impossible parameters")
        hashed.read(head.parameters_length)
        record = hashed.read(RECORD_SIZE)
        return hashed, record, read_clear(record)
    except (ValueError, CutShort, NotAuthentic) as error:
        text = f"{path} is not an exported session: {error}"
        raise SparsebakError(text, "name a file that 'sparsebak export' wrote") from None


def take_in(
    archive: Archive, stream: IO[bytes], path: Path, progress: Progress, keys: Keys | None = None
) -> Clear:
    """Store an exported session. The file is read twice: nothing of it is stored before it has
    proven undamaged.

    With the archive's keys also that it is authentic. Without them a chunk that somebody forged
    would be noticed only by a later verify. A file that is another one when it is read again
    becomes no session. Raises DamagedError, SparsebakError.
    """
    clear, digest = prove(archive, stream, path, progress, keys)
    if _is_whole(archive, clear):
        raise SparsebakError(f"this session is in {archive.storage.describe()} already")
    stream.seek(0)
    hashed, record, _ = read_head(stream, path)
    writer = PackWriter(archive)
    try:
        incoming = Incoming(archive, writer, record, NO_BASE, 0, digest[:16])
        try:
            _take_all(incoming, _entries(archive, hashed, clear, progress))
            if hashed.digest() != digest:
                incoming.give_up()
                raise DamagedError(f"{path} changed while it was read", "import it again")
            stored = incoming.finish()
            writer.finish()
            archive.damaged.pop(stored.file, None)
            spoilt = archive.catalog.spoilt()
            if stored.file in spoilt:
                archive.catalog.set_spoilt(spoilt - {stored.file})
        finally:
            incoming.close()
    finally:
        writer.close()
    return clear


def _take_all(incoming: Incoming, entries: Iterator[Entry]) -> None:
    """Take what is still wanted, as far as there is any: the digest says whether that was all."""
    with suppress(CutShort):
        for entry in entries:
            if entry.number >= incoming.position:
                incoming.take(entry)


def _is_whole(archive: Archive, clear: Clear) -> bool:
    """Whether the archive has a session with all that it needs; one that is spoilt is put right by
    what is taken in.
    """
    series = archive.sessions(clear.volume_id.hex()).get(clear.volume_id.hex(), [])
    for session in series:
        if session.clear.session != clear.session:
            continue
        found, missing = chain(series, session)
        try:
            for one in found:
                sessions.check(archive.storage, one)
        except DamagedError:
            return False
        files = {one.file for one in found}
        return missing == NO_BASE and files.isdisjoint(archive.catalog.spoilt())
    return False


def prove(
    archive: Archive, stream: IO[bytes], path: Path, progress: Progress, keys: Keys | None
) -> tuple[Clear, bytes]:
    """Read an exported file to its end; raise DamagedError if it is not what was written or, with
    keys, not authentic.

    Returns what its record says, and its digest.
    """
    hashed, record, clear = read_head(stream, path)
    try:
        if keys is None:
            for _ in _entries(archive, hashed, clear, progress):
                pass
        else:
            opened = open_record(record, keys)
            domain_keys = opened.domain_keys(keys)
            root = Tree(domain_keys), opened.root
            entries = _entries(archive, hashed, clear, progress, root)
            open_chunks(map(SealedChunk._make, entries), opened, domain_keys, THREADS, None)
        if read_exactly(stream, DIGEST_SIZE) != hashed.digest() or stream.read(1):
            raise DamagedError(f"{path} is damaged: its checksum is wrong", "export it again")
    except CutShort:
        raise DamagedError(f"{path} is cut short", "copy it again") from None
    except NotAuthentic as error:
        raise DamagedError(
            f"{path} is not authentic: {error}",
            "export it again, from an archive that scrub finds sound",
        ) from None
    return clear, hashed.digest()


def _entries(
    archive: Archive,
    hashed: _Hashed,
    clear: Clear,
    progress: Progress,
    root: tuple[Tree, bytes] | None = None,
) -> Iterator[Entry]:
    """The entries of a file whose head has been read. With a tree and its root the ids are compared
    with that first.

    Raises DamagedError, CutShort, NotAuthentic.
    """
    chunks, pages = chunk_count(clear.size, clear.chunk_size), bytearray()
    with archive.storage.workspace.scratch() as ids:
        for first in range(0, chunks, PAGE_IDS):
            page = hashed.read(min(PAGE_IDS, chunks - first) * ID_SIZE)
            ids.write(page)
            if root is not None:
                pages += root[0].page(page)
        if root is not None:
            digests = (bytes(pages[at : at + 32]) for at in range(0, len(pages), 32))
            if root[0].root(clear.size, clear.chunk_size, digests) != root[1]:
                raise NotAuthentic("its chunk ids are not those of its record")
        ids.seek(0)
        for number in range(chunks):
            chunk_id = ids.read(ID_SIZE)
            progress.advance(clear.chunk_size)
            if chunk_id == ZERO_ID:
                continue
            (length,) = LENGTH.unpack(hashed.read(LENGTH.size))
            if length > largest_frame(clear.chunk_size):
                raise DamagedError(
                    f"chunk {number} claims an impossible length", "export the session again"
                )
            yield Entry(number, chunk_id, hashed.read(length))


def export_tar(
    archive: Archive, image: Image, keys: AnyKeys, name: str, out: IO[bytes], progress: Progress
) -> None:
    """Write a session as a tar file with one sparse file in it (GNU's sparse format 1.0, as GNU tar
    and Python read it).
    """
    proven, size = open_image(archive, image, keys, name), image.session.clear.chunk_size
    record = proven.record
    data_runs = runs((first, (ids != 0).any(axis=1)) for first, ids in image.arrays())
    pieces = [(start * size, min(end * size, record.size)) for start, end in data_runs]
    numbers = [
        len(pieces) + 1,
        *(n for start, end in pieces for n in (start, end - start)),
        record.size,
        0,
    ]
    listed = "".join(f"{number}\n" for number in numbers).encode()
    listed = listed.ljust(-(-len(listed) // _BLOCK) * _BLOCK, b"\0")
    data = sum(end - start for start, end in pieces)
    member = f"{record.qube}-{record.volume}.img"
    info = tarfile.TarInfo(f"GNUSparseFile.0/{member}")
    info.size, info.mtime, info.mode = len(listed) + data, record.time, 0o600
    sparse = {"major": "1", "minor": "0", "name": member, "realsize": str(record.size)}
    info.pax_headers = {f"GNU.sparse.{key}": value for key, value in sparse.items()}
    out.write(info.tobuf(tarfile.PAX_FORMAT) + listed)
    read_chunks(
        archive,
        image,
        proven,
        progress,
        lambda _, parts: out.write(b"".join(parts)),
        ordered=True,
    )
    out.write(bytes(-data % _BLOCK + 2 * _BLOCK))
