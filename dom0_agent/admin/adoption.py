# SPDX-License-Identifier: GPL-2.0-or-later
"""Adopting an archive in a new dom0 (``keys import``), from a file that the backup VM wrote and the
passphrase or recovery key.

The file holds an ArchiveEntry, its key slots and each volume's newest record, as frames of fixed
sizes. Nothing in it is believed before a slot opens, and of the records nothing but what the key
proves.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from dom0_agent.admin.archives import keep
from dom0_agent.admin.renaming import adopted, change, nothing_kept
from dom0_agent.keyring import ArchiveKey, Keyring
from dom0_agent.tracking.identities import Identities
from dom0_agent.tracking.progress import ArchiveProgress, Committed
from dom0_agent.tracking.state import VolumeState
from wire import CHUNK_SIZES, FORMAT, other_format
from wire.chunks import SUITES, Keys, NotAuthentic
from wire.messages import (
    HEADER,
    HEADER_SIZE,
    KIND_ARCHIVE,
    KIND_RECORD,
    KIND_SLOT,
    MODE_OPEN,
    MODE_SEALED,
    ArchiveEntry,
)
from wire.records import RECORD_SIZE, Record, open_record
from wire.slots import MAX_SLOTS, SLOT_SIZE, open_any
from wire.status import Code, Refused
from wire.stream import CutShort, read_exactly

LIMIT = 4 << 20
"""Bytes of such a file, at most."""


@dataclass(frozen=True)
class KeysFile:
    """What the file says; only lengths and ranges have been checked."""

    untrusted_entry: ArchiveEntry
    untrusted_slots: tuple[bytes, ...]
    untrusted_records: tuple[bytes, ...]


def read(path: Path) -> KeysFile:
    """Read such a file, or raise Refused."""
    with open(path, "rb") as file:
        untrusted_raw = file.read(LIMIT + 1)
    if len(untrusted_raw) > LIMIT:
        raise Refused(Code.BAD_REQUEST, f"{path} is too long to be what 'sparsebak keys' writes")
    try:
        kinds: dict[int, list[bytes]] = {KIND_ARCHIVE: [], KIND_SLOT: [], KIND_RECORD: []}
        for kind, untrusted_payload in _frames(untrusted_raw):
            kinds[kind].append(untrusted_payload)
        (untrusted_archive,) = kinds[KIND_ARCHIVE]
        entry = ArchiveEntry.parse(untrusted_archive)
        if entry.format != FORMAT:
            raise ValueError(f"an archive of {other_format(entry.format)[0]}")
        if (
            entry.mode not in (MODE_OPEN, MODE_SEALED)
            or entry.suite not in SUITES
            or entry.chunk_size not in CHUNK_SIZES
        ):
            raise ValueError("parameters of no archive")
        if len(kinds[KIND_SLOT]) != entry.slots or entry.slots > MAX_SLOTS:
            raise ValueError("key slots are missing")
    except (ValueError, CutShort) as error:
        raise Refused(
            Code.BAD_REQUEST, f"{path} is not what 'sparsebak keys' of this version writes: {error}"
        ) from None
    return KeysFile(entry, tuple(kinds[KIND_SLOT]), tuple(kinds[KIND_RECORD]))


def _frames(untrusted_raw: bytes) -> Iterator[tuple[int, bytes]]:
    lengths = {KIND_ARCHIVE: ArchiveEntry.length(), KIND_SLOT: SLOT_SIZE, KIND_RECORD: RECORD_SIZE}
    stream = BytesIO(untrusted_raw)
    while stream.tell() < len(untrusted_raw):
        kind, length = HEADER.unpack(read_exactly(stream, HEADER_SIZE))
        if lengths.get(kind) != length:
            raise ValueError(f"a frame of kind {kind} and length {length}")
        yield kind, read_exactly(stream, length)


def unlock(file: KeysFile, secret: bytes) -> bytes:
    """The master key: by passphrase or recovery key, or in open mode as it stands. Refused when it
    does not open.
    """
    entry = file.untrusted_entry
    if entry.mode == MODE_OPEN:
        return entry.key
    master = open_any(file.untrusted_slots, secret, entry.archive)
    if master is not None:
        return master
    raise Refused(
        Code.NOT_AUTHENTIC,
        "this passphrase or recovery key does not open the archive; check it and type it again",
    )


def adopt(
    state_dir: Path, file: KeysFile, label: str, caller: str, master: bytes
) -> tuple[ArchiveKey, list[str]]:
    """Add the archive, and what its records tell of its volumes. Returns it and the volumes, for
    people.

    What dom0 then knows of a volume is its newest session and no chunk ids, so that its next backup
    looks at everything and sends what differs.
    """
    entry, keys = file.untrusted_entry, Keys(master)
    records = [_open(untrusted_record, keys, entry) for untrusted_record in file.untrusted_records]
    keyring = Keyring(state_dir)
    archive = ArchiveKey(
        directory=keyring.place(entry.archive),
        id=entry.archive,
        label=label,
        caller=caller,
        mode=entry.mode,
        chunk_size=entry.chunk_size,
        created=entry.created,
        slots=file.untrusted_slots,
        suite=entry.suite,
    )
    records.sort(key=lambda record: record.time, reverse=True)  # of two of a name the newer has it
    newest = dict[str, Record]()  # what each was called last
    for record in records:
        newest.setdefault(record.identity, record)
    empty = nothing_kept(state_dir)

    def with_these(known: Identities) -> Identities:
        for record in newest.values():
            known = adopted(known, record.identity, record.qube, empty)
        return known

    identities = change(state_dir, with_these)
    for record in records:
        _remember(state_dir, archive, record, keys)
    keep(keyring, archive, master)  # the commit point: before it, the same can be done again
    return archive, [_named(one, identities) for one in records]


def _named(record: Record, identities: Identities) -> str:
    """A volume as it is called here. Where the archive calls it otherwise, it may be that of two
    machines both had a qube of one name, and one of them was renamed.
    """
    name = f"{identities.name(record.identity)}/{record.volume}"
    return name if name == record.name else f"{name} (in the archive: {record.name})"


def _open(untrusted_record: bytes, keys: Keys, entry: ArchiveEntry) -> Record:
    try:
        record = open_record(untrusted_record, keys)
    except NotAuthentic as error:
        raise Refused(Code.NOT_AUTHENTIC, f"a session record is not authentic: {error}") from None
    if (record.archive, record.suite, record.chunk_size) != (
        entry.archive,
        entry.suite,
        entry.chunk_size,
    ):
        raise Refused(
            Code.NOT_AUTHENTIC,
            f"the record of {record.name} belongs to another archive",
        )
    return record


def _remember(state_dir: Path, archive: ArchiveKey, record: Record, keys: Keys) -> None:
    store, archive_id = VolumeState(state_dir, record.identity, record.volume), archive.id.hex()
    with store.locked() as state:
        progress = state.follows.get(archive_id)
        if progress is not None and (progress.pending or progress.mark >= record.sequence):
            return
        committed = Committed(
            session=record.session.hex(),
            sequence=record.sequence,
            time=record.time,
            size=record.size,
            dedup_domain=record.dedup_domain.hex(),
            digest=record.digest(keys).hex(),
            root=record.root.hex(),
        )
        state.follows[archive_id] = ArchiveProgress(
            volume_id=record.volume_id.hex(),
            ids=f"{archive_id}.ids",
            committed=committed,
            mark=record.sequence,
            mark_time=record.time,
        )
        store.save(state)
