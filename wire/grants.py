# SPDX-License-Identifier: GPL-2.0-or-later
"""A read grant: the keys of one deduplication domain, and the opened records of some sessions of
one volume in it. Made in dom0, for a holder that is to see these images and no others.

A grant is a secret, not a proof: whoever has one can make others of its domain's keys. So what it
says is believed because of where it came from, and of its bytes no more is checked than that they
are whole and fit together.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, ClassVar

from common.text import session_names
from wire import DEDUP_DOMAIN_SIZE, LAST_SEQUENCE
from wire.chunks import KEY_SIZE, SUITES, DomainKeys, NotAuthentic
from wire.compiled import COMPILED
from wire.layout import Structure
from wire.records import OPENED_SIZE, OpenedRecord, Record, read_clear, read_opened

if TYPE_CHECKING:
    from construct import Bytes, Const, Int8ul, Int32ul, this

    from wire.declared import of

GRANT_MAGIC = b"SBGRNT\x00\x02"
"""Its last byte is the format, as in the files of an archive."""
MAX_RECORDS = 1 << 16
"""Sessions of one grant, at most."""
_DIGEST_SIZE = 32


class GrantHead(Structure, compiled=COMPILED, kw_only=True):
    """Beginning of a grant: what opens the images of one deduplication domain."""

    magic: ClassVar[Annotated[bytes, Const(GRANT_MAGIC)]]
    archive: Annotated[bytes, Bytes(16) * "archive id"]
    dedup_domain: Annotated[bytes, Bytes(DEDUP_DOMAIN_SIZE) * "deduplication domain"]
    suite: Annotated[int, Int8ul * "suite, see Chunks"]
    ids: Annotated[bytes, Bytes(KEY_SIZE) * 'its key "chunk ids"']
    sealing: Annotated[bytes, Bytes(KEY_SIZE) * 'its key "sealing"']
    root: Annotated[bytes, Bytes(KEY_SIZE) * 'its key "root"']
    count: Annotated[int, Int32ul * "number of records, at least one"]

    def __repr__(self) -> str:  # keys belong into no log
        return f"GrantHead(suite={self.suite}, count={self.count})"


class GrantFile(Structure):
    """A grant as a whole."""

    head: GrantHead
    records: Annotated[list[OpenedRecord], of(OpenedRecord)[this.head.count]]
    digest: Annotated[bytes, Bytes(_DIGEST_SIZE) * "BLAKE2b-256 of all before"]


_HEAD_SIZE = GrantHead.length()
GRANT_LIMIT = _HEAD_SIZE + MAX_RECORDS * OPENED_SIZE + _DIGEST_SIZE
"""Bytes of a grant, at most."""


class BadGrant(ValueError):
    """Not a grant, or one that is damaged; the text says what is wrong."""


class NotGranted(NotAuthentic):
    """A session that a grant is not for."""


class Grant:
    """See the module. All records are of one volume, no two of one session."""

    def __init__(self, keys: DomainKeys, records: tuple[Record, ...]) -> None:
        """Raises BadGrant."""
        self.keys, self.records = keys, records
        if not 1 <= len(records) <= MAX_RECORDS:
            raise BadGrant(f"a grant is for 1 to {MAX_RECORDS} sessions, not {len(records)}")
        first = records[0]
        for record in records:
            if _belongs(record) != _belongs(first) or record.suite != keys.suite:
                raise BadGrant("its sessions are not all of one volume and deduplication domain")
            if record.sequence > LAST_SEQUENCE:
                raise BadGrant("one of its sessions has an impossible number")
        if len({record.session for record in records}) != len(records):
            raise BadGrant("it has a session twice")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grant) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.keys, self.records))

    @property
    def archive(self) -> bytes:
        """Id of the archive that its sessions are in."""
        return self.records[0].archive

    @property
    def names(self) -> dict[bytes, str]:
        """What its sessions are called, by their ids."""
        return session_names((record.time, record.session) for record in self.records)

    @property
    def volume_id(self) -> bytes:
        """Id of the volume that its sessions are of."""
        return self.records[0].volume_id

    def record_of(self, untrusted_record: bytes) -> Record:
        """What the record of a granted session says; raise NotGranted for another session, and
        NotAuthentic for one that says in clear what dom0 did not.
        """
        clear = read_clear(untrusted_record)
        record = next((one for one in self.records if one.session == clear.session), None)
        if record is None:
            raise NotGranted("the grant is not for this session")
        if clear.build() != record.opened()[: len(clear.build())]:
            raise NotAuthentic("the record in clear is not that of the granted session")
        return record

    def build(self) -> bytes:
        """The grant as bytes: to be handed to whoever is to hold it, and kept nowhere."""
        keys = self.keys
        head = GrantHead(
            archive=self.archive,
            dedup_domain=self.records[0].dedup_domain,
            suite=keys.suite,
            ids=keys.ids,
            sealing=keys.sealing,
            root=keys.root,
            count=len(self.records),
        )
        raw = head.build() + b"".join(record.opened() for record in self.records)
        return raw + _digest(raw)

    @classmethod
    def parse(cls, untrusted_raw: bytes) -> Grant:
        """Undo build; raise BadGrant."""
        if len(untrusted_raw) < _HEAD_SIZE + _DIGEST_SIZE:
            raise BadGrant("it is not a grant, or was cut off")
        try:
            head = GrantHead.parse(untrusted_raw[:_HEAD_SIZE])
        except ValueError as error:
            raise BadGrant(f"it is not a grant of this version: {error}") from None
        end = _HEAD_SIZE + head.count * OPENED_SIZE
        if head.count > MAX_RECORDS or len(untrusted_raw) != end + _DIGEST_SIZE:
            raise BadGrant("it has another length than it says")
        if _digest(untrusted_raw[:end]) != untrusted_raw[end:]:
            raise BadGrant("it is damaged: its checksum is wrong")
        if head.suite not in SUITES:
            raise BadGrant(f"it is of suite {head.suite}, which this version does not know")
        try:
            records = tuple(
                read_opened(untrusted_raw[at : at + OPENED_SIZE])
                for at in range(_HEAD_SIZE, end, OPENED_SIZE)
            )
        except NotAuthentic as error:
            raise BadGrant(str(error)) from None
        grant = cls(DomainKeys(head.suite, head.ids, head.sealing, head.root), records)
        if (head.archive, head.dedup_domain) != (grant.archive, records[0].dedup_domain):
            raise BadGrant("its sessions are of another archive or deduplication domain")
        return grant


def _belongs(record: Record) -> tuple[bytes, bytes, int, bytes, int]:
    """What all records of a grant have in common."""
    return (
        record.archive,
        record.volume_id,
        record.chunk_size,
        record.dedup_domain,
        record.suite,
    )


def _digest(raw: bytes) -> bytes:
    return hashlib.blake2b(raw, digest_size=_DIGEST_SIZE).digest()
