"""Scrub: every file of the archive against its checksums, and every chunk that a session needs. No key is needed."""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

import xxhash

from backup_vm.archive import catalog as catalogs
from backup_vm.archive import notes, packs, sessions
from backup_vm.archive.archive import Archive, rescan_key
from backup_vm.archive.format import ENTRY, ENTRY_SIZE, PACK_HEAD_SIZE
from backup_vm.archive.image import split
from backup_vm.archive.packs import Packed, checksum
from backup_vm.archive.storage import Reader
from backup_vm.errors import DamagedError
from backup_vm.progress import Progress
from wire.sealing import ZERO_ID


@dataclass(frozen=True)
class Finding:
    """Something damaged: a file, what is wrong with it, and the sessions (file names) that it spoils."""

    file: str
    problem: str
    sessions: tuple[str, ...] = ()


def scrub(archive: Archive, progress: Progress) -> Iterator[Finding]:
    """Check everything, yielding what is wrong. Chunks that are damaged leave the catalog, to be sent again."""
    yield from _catalog(archive)
    try:
        notes.load(archive.storage)
    except DamagedError as error:
        yield Finding(notes.NAME, str(error))
    spoilt: set[str] = set()
    for name in archive.session_files():
        try:
            sessions.check(archive.storage, sessions.load(archive.storage, name))
        except DamagedError as error:
            spoilt.add(name)
            _rescan(archive, name)
            yield Finding(name, str(error), (name,))
    names = archive.storage.names("packs", packs.SUFFIX)
    progress.start(sum(archive.storage.size(name) for name in names))
    numbers = {name: number for number, name in archive.catalog.packs().items()}
    for name in names:
        yield from _pack(archive, name, numbers.get(name), progress)
    if not spoilt:
        yield from _missing(archive)


def _catalog(archive: Archive) -> Iterator[Finding]:
    """The catalog is a cache: it is compared with what it is made from, and made anew if it differs."""
    problem = ""
    before = b""
    try:
        if not archive.catalog.whole():
            problem = "it was damaged"
        before = archive.catalog.digest()
    except sqlite3.DatabaseError as error:
        problem = f"it was damaged ({error})"
    if not problem and archive.true_catalog_digest() != before:
        problem = "it did not list the chunks that there are"
    if not problem and _misplaces(archive):
        problem = "it did not say where the chunks are"
    if problem:
        archive.rebuild_catalog()
        yield Finding(
            catalogs.NAME,
            f"{archive.storage.describe(catalogs.NAME)}: {problem}; it has been rebuilt",
        )


def _misplaces(archive: Archive) -> bool:
    """Whether the catalog puts a chunk where its pack's index has none."""
    for number, name in archive.catalog.packs().items():
        try:
            held = {
                entry.offset: entry.id
                for entry in packs.read_index(archive.storage, name, archive.parameters.archive)
            }
        except (DamagedError, FileNotFoundError):
            continue  # told of when the pack is looked at
        if not archive.catalog.in_pack(number).items() <= held.items():
            return True
    return False


def _pack(archive: Archive, name: str, number: int | None, progress: Progress) -> Iterator[Finding]:
    storage, catalog = archive.storage, archive.catalog
    path = storage.describe(name)
    live = catalog.in_pack(number) if number is not None else {}
    try:
        entries = packs.read_index(storage, name, archive.parameters.archive)
    except DamagedError as error:
        yield Finding(name, str(error))
        entries = list(packs.scan(storage, name, archive.parameters.chunk_size))
    found = {entry.offset: entry for entry in entries}
    wrong = [
        offset
        for offset, chunk_id in live.items()
        if offset not in found or found[offset].id != chunk_id
    ]
    reader = storage.reader(name)
    try:
        bad = [entry for entry in entries if not _sound(reader, entry, entry.offset in live)]
        expected = PACK_HEAD_SIZE
        for entry in entries:
            if entry.offset != expected + ENTRY_SIZE:
                yield Finding(name, f"{path} is damaged at byte {expected}")
            expected = entry.offset + entry.length
    finally:
        reader.close()
    for entry in bad:
        spoils = entry.offset in live
        if spoils:
            _forget(archive, entry.id)
        text = f"{path} is damaged at byte {entry.offset} (chunk {entry.id.hex()[:16]})"
        yield Finding(
            name,
            text if spoils else f"{text}, which no session needs",
            _users(archive, entry.id) if spoils else (),
        )
    for offset in wrong:
        _forget(archive, live[offset])
        text = f"{path} does not hold chunk {live[offset].hex()[:16]} at byte {offset}"
        yield Finding(name, text, _users(archive, live[offset]))
    progress.advance(storage.size(name))


def _sound(reader: Reader, entry: Packed, live: bool) -> bool:
    """Whether a chunk and the entry before it are as they were written; what is not live may be a hole instead."""
    raw = reader.read(entry.offset - ENTRY_SIZE, ENTRY_SIZE + entry.length)
    head = ENTRY.pack(entry.length, entry.id, entry.checksum)
    sealed = memoryview(raw)[ENTRY_SIZE:]
    if raw[:ENTRY_SIZE] != head or len(sealed) != entry.length:
        return False
    digest = xxhash.xxh3_128_digest(sealed)
    return digest == entry.checksum or (not live and digest == checksum(bytes(entry.length)))


def _forget(archive: Archive, chunk_id: bytes) -> None:
    """Take a damaged chunk out of the catalog, so that the next backup stores it again."""
    archive.catalog.remove(chunk_id)
    for name in _users(archive, chunk_id):
        _rescan(archive, name)


def _rescan(archive: Archive, session_file: str) -> None:
    """Note that the next session of this volume must be a full one."""
    archive.catalog.set_meta(rescan_key(session_file.split("/")[1]), "scrub")


def _users(archive: Archive, chunk_id: bytes) -> tuple[str, ...]:
    """Session files that list a chunk."""
    import numpy as np

    wanted, users = np.frombuffer(chunk_id, np.uint8), []
    for name in archive.session_files():
        try:
            columns = sessions.columns(archive.storage, sessions.load(archive.storage, name))
        except DamagedError:
            continue
        if any((ids == wanted).all(axis=1).any() for _, ids in columns.slices()):
            users.append(name)
    return tuple(users)


def _missing(archive: Archive) -> Iterator[Finding]:
    """Chunks that a session lists and no pack holds."""
    for name in archive.session_files():
        session = sessions.load(archive.storage, name)
        lacking = 0
        for _, ids in sessions.columns(archive.storage, session).slices():
            wanted = set(split(ids)) - {ZERO_ID}
            lacking += len(wanted - archive.catalog.places(wanted).keys())
        if lacking:
            _rescan(archive, name)
            yield Finding(
                name,
                f"{archive.storage.describe(name)}: {lacking} of its chunks are missing or damaged",
                (name,),
            )
