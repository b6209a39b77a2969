"""Bringing a second copy of an archive up to date: what it lacks is sent, and each chunk is checked on both sides."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from backup_vm.archive import notes, packs, parameters, sessions
from backup_vm.archive.archive import Archive, create_archive, open_archive
from backup_vm.archive.image import split
from backup_vm.archive.incoming import Entry, Incoming
from backup_vm.archive.packs import PackReader
from backup_vm.archive.prune import prune
from backup_vm.archive.sessions import Session
from backup_vm.archive.storage import open_storage
from backup_vm.archive.store import Store
from backup_vm.errors import DamagedError, NoArchiveError, SparsebakError
from backup_vm.progress import Progress
from wire.sealing import ZERO_ID

_SLICE = 1 << 12


@dataclass
class Copied:
    """What was done: sessions stored, bytes of chunks sent, sessions removed, and what could not be copied."""

    sessions: int = 0
    stored: int = 0
    removed: int = 0
    failed: list[str] = field(default_factory=list)


def copy(source: Archive, location: str, progress: Progress, delete: bool = False) -> Copied:
    """Bring the copy in a directory or at a URL up to date, made anew if there is none.

    With ``delete`` sessions go that the source does not have; otherwise the copy may hold more. Dying anywhere leaves a
    copy that is whole as far as it goes, and the next run goes on.
    """
    _prepare(source, location)
    done = Copied()
    with open_archive(location, writing=True, command="copy") as target:
        before = set(target.storage.names("packs", packs.SUFFIX))
        series = [session for volume in source.sessions().values() for session in volume]
        there = {
            session.file: session for volume in target.sessions().values() for session in volume
        }
        due = [
            session
            for session in series
            if not _same(source, target, session, there.get(session.file))
        ]
        due.sort(
            key=lambda session: (session.file not in there, session.file)
        )  # what a prune stored anew comes first
        progress.start(sum(session.count for session in due) * source.parameters.chunk_size)
        _send_all(source, target, due, progress, done)
        _check(target, before, done)
        _copy_notes(source, target)
        if delete:
            kept = {session.file for session in series} | set(source.damaged)
            doomed = [session for file, session in there.items() if file not in kept]
            done.removed = prune(target, doomed).sessions
        done.failed += [str(error) for error in source.damaged.values()]
    return done


def _prepare(source: Archive, location: str) -> None:
    try:
        found = parameters.load(open_storage(location))
    except NoArchiveError:
        create_archive(location, source.parameters)
        return
    if found.archive != source.parameters.archive:
        raise SparsebakError(
            f"{location} is another archive ({found.label})",
            "name a new place, or a copy of this archive",
        )
    if found != source.parameters:
        source.parameters.save(open_storage(location))  # key slots may have changed


def _same(source: Archive, target: Archive, session: Session, there: Session | None) -> bool:
    """Whether the copy has a session as it is: a prune may have stored it anew since."""
    if there is None or (there.inherit, there.count) != (session.inherit, session.count):
        return False
    return sessions.digest(source.storage, session) == sessions.digest(target.storage, there)


def _send_all(
    source: Archive, target: Archive, due: list[Session], progress: Progress, done: Copied
) -> None:
    store = Store(target)
    try:
        with PackReader(source.storage) as reader:
            for session in due:
                progress.volume(session.name)
                try:
                    _send(source, target, store, reader, session, progress)
                    done.sessions += 1
                except DamagedError as error:
                    done.failed.append(f"{session.name} of volume {session.volume}: {error}")
            store.flush()
    finally:
        done.stored = store.stored
        store.close()
        progress.stop()
    target.catalog.set_meta("sweep", None)


def _send(
    source: Archive,
    target: Archive,
    store: Store,
    reader: PackReader,
    session: Session,
    progress: Progress,
) -> None:
    sessions.check(source.storage, session)
    series = source.sessions(session.volume)[session.volume]
    ours = {one.file for one in series}
    if session.inherit and _strangers_before(target, series, session, ours):
        inherit, entries = 0, _image_entries(source, series, session)
    else:
        inherit, entries = session.inherit, _columns(source, session)
    said = sessions.digest(source.storage, session) + inherit.to_bytes(8, "little")
    fingerprint = hashlib.blake2b(said, digest_size=16).digest()
    incoming = Incoming(target, store, session.record, inherit, fingerprint, ours)
    try:
        for part in entries:
            for entry in _with_chunks(
                source, store, reader, [one for one in part if one[0] >= incoming.position]
            ):
                incoming.take(entry)
                progress.advance(session.clear.chunk_size)
        incoming.finish()
    finally:
        incoming.close()


def _strangers_before(
    target: Archive, series: list[Session], session: Session, ours: set[str]
) -> bool:
    """Whether the copy has sessions that the source has not, between the session and the one that it builds on."""
    at = series.index(session)
    before = series[at - 1].file if at else ""
    found = target.sessions(session.volume).get(session.volume, [])
    return any(before < one.file < session.file and one.file not in ours for one in found)


def _columns(source: Archive, session: Session) -> Iterator[list[tuple[int, bytes]]]:
    """The entries of a session file, in parts."""
    for numbers, ids in sessions.columns(source.storage, session).slices(_SLICE):
        yield list(zip(numbers.tolist(), split(ids), strict=True))


def _image_entries(
    source: Archive, series: list[Session], session: Session
) -> Iterator[list[tuple[int, bytes]]]:
    """The entries that the session would have if it built on nothing, in parts."""
    for first, ids in source.image(series, session).windows():
        yield [(first + at, chunk_id) for at, chunk_id in enumerate(ids) if chunk_id != ZERO_ID]


def _with_chunks(
    source: Archive, store: Store, reader: PackReader, part: list[tuple[int, bytes]]
) -> Iterator[Entry]:
    """Entries with the sealed chunk where the copy lacks it."""
    lacking = {
        chunk_id for _, chunk_id in part if chunk_id != ZERO_ID and not store.holds(chunk_id)
    }
    places = source.catalog.places(lacking)
    for number, chunk_id in part:
        sealed: bytes | memoryview = b""
        if chunk_id in lacking and not store.holds(chunk_id):
            if chunk_id not in places:
                raise DamagedError(f"chunk {number} is missing from {source.storage.describe()}")
            place = places[chunk_id]
            sealed = reader.read(place.pack, chunk_id, place.offset, place.length)
        yield Entry(number, chunk_id, sealed)


def _check(target: Archive, before: set[str], done: Copied) -> None:
    """Read back what was written."""
    with PackReader(target.storage) as reader:
        for name in sorted(set(target.storage.names("packs", packs.SUFFIX)) - before):
            for entry in packs.read_index(target.storage, name, target.parameters.archive):
                if not reader.sound(name, entry):
                    done.failed.append(
                        f"{target.storage.describe(name)} is damaged at byte {entry.offset}"
                    )


def _copy_notes(source: Archive, target: Archive) -> None:
    found = notes.load(source.storage)
    if found.sessions:
        notes.change(target.storage, lambda every: every.sessions.update(found.sessions))
