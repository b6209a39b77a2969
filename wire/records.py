# SPDX-License-Identifier: GPL-2.0-or-later
"""Session records: what dom0 vouches for. A part in clear for the backup VM and a sealed part,
authenticated together.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, ClassVar

from wire import CHUNK_SIZES, DEDUP_DOMAIN_SIZE, FORMAT, MAX_VOLUME_SIZE, other_format
from wire.chunks import (
    NONCE_SIZE,
    SALT_SIZE,
    SUITES,
    TAG_SIZE,
    DomainKeys,
    Keys,
    NotAuthentic,
    open_bytes,
    seal_bytes,
)
from wire.compiled import COMPILED
from wire.layout import Structure
from wire.names import BadName, parse_identity, parse_name

if TYPE_CHECKING:
    from construct import Bytes, Const, Int8ul, Int16ul, Int32ul, Int64ul

    from wire.declared import Text, Time

MAGIC = b"SBRC"


class Clear(Structure, compiled=COMPILED, kw_only=True):
    """What a record says without the key; to be believed only once the record has been opened."""

    magic: ClassVar[Annotated[bytes, Const(MAGIC)]]
    format: Annotated[int, Int16ul * "version of the format"] = FORMAT
    suite: Annotated[int, Int8ul * "suite, see Chunks"]
    reserved: ClassVar[Annotated[bytes, Const(b"\0")]]
    archive: Annotated[bytes, Bytes(16) * "archive id"]
    volume_id: Annotated[bytes, Bytes(16) * "volume id"]
    session: Annotated[bytes, Bytes(16) * "session id"]
    sequence: Annotated[int, Int64ul * "sequence"]
    time: Annotated[int, Time * "time of the session, Unix seconds"]
    size: Annotated[int, Int64ul * "bytes of the volume"]
    chunk_size: Annotated[int, Int32ul * "bytes of a chunk"]


class Secret(Structure, compiled=COMPILED, kw_only=True):
    """What a record says under its seal. The name is that of the time of the session, which a qube
    may change; its ``identity`` it keeps."""

    qube: Annotated[str, Text(64) * "name of the qube"]
    volume: Annotated[str, Text(64) * "name of its volume"]
    identity: Annotated[str, Text(64) * "identity of the qube"]
    dedup_domain: Annotated[bytes, Bytes(DEDUP_DOMAIN_SIZE) * "deduplication domain"]
    root: Annotated[bytes, Bytes(32) * "root of the image"]
    previous: Annotated[bytes, Bytes(32) * "digest of the record before it, zero for the first"]


class SealedRecord(Structure, compiled=COMPILED):
    """A session record as it leaves dom0: the part in clear, then a short seal of the other."""

    clear: Clear
    seal: SealedSecret


class SealedSecret(Structure, compiled=COMPILED):
    """A short seal of a record's secret part; its associated data is the part in clear."""

    salt: Annotated[bytes, Bytes(SALT_SIZE) * "random"]
    nonce: Annotated[bytes, Bytes(NONCE_SIZE) * "zero"]
    text: Annotated[bytes, Bytes(Secret.length()) * "AES-256-GCM of the sealed part"]
    tag: Annotated[bytes, Bytes(TAG_SIZE) * "tag"]


class OpenedRecord(Structure, compiled=COMPILED):
    """A session record after its seal was opened: all it says, as a grant has it."""

    clear: Clear
    secret: Secret


CLEAR_SIZE = Clear.length()
RECORD_SIZE = SealedRecord.length()
OPENED_SIZE = OpenedRecord.length()


class Record(Clear, Secret, kw_only=True):
    """A session record: all it says."""

    @property
    def name(self) -> str:
        """The volume, for people: ``qube/volume``."""
        return f"{self.qube}/{self.volume}"

    def seal(self, keys: Keys) -> bytes:
        """The RECORD_SIZE bytes that leave dom0."""
        clear = self._clear()
        return clear + seal_bytes(keys.sub_key("records"), self._secret(), clear)

    def digest(self, keys: Keys) -> bytes:
        """Keyed hash of what the record says; does not depend on the random salt it was sealed
        with.
        """
        return hashlib.blake2b(
            self._clear() + self._secret(), digest_size=32, key=keys.sub_key("records")
        ).digest()

    def opened(self) -> bytes:
        """The OPENED_SIZE bytes of an OpenedRecord."""
        return self._clear() + self._secret()

    def domain_keys(self, keys: Keys) -> DomainKeys:
        """The keys that its image is opened with."""
        return keys.of_domain(self.dedup_domain, self.suite)

    def _clear(self) -> bytes:
        return Clear.coder().build(vars(self))

    def _secret(self) -> bytes:
        return Secret.coder().build(vars(self))


def read_clear(untrusted_record: bytes) -> Clear:
    """The part in clear of a record of RECORD_SIZE bytes; raise NotAuthentic when it cannot be one
    of ours.
    """
    if len(untrusted_record) != RECORD_SIZE:
        raise NotAuthentic("a session record has another length")
    return _read_clear(untrusted_record[:CLEAR_SIZE])


def _read_clear(untrusted_clear: bytes) -> Clear:
    try:
        clear = Clear.parse(untrusted_clear)
    except ValueError as error:
        raise NotAuthentic(f"not a session record: {error}") from None
    if clear.format != FORMAT:
        raise NotAuthentic(f"record of {other_format(clear.format)[0]}")
    if clear.suite not in SUITES:
        raise NotAuthentic(f"record of suite {clear.suite}, which this version does not know")
    if clear.chunk_size not in CHUNK_SIZES or clear.size > MAX_VOLUME_SIZE:
        raise NotAuthentic("record with an impossible size")
    return clear


def open_record(untrusted_record: bytes, keys: Keys) -> Record:
    """Authenticate a record and return all it says, or raise NotAuthentic."""
    clear = read_clear(untrusted_record)
    body = open_bytes(
        keys.sub_key("records"), untrusted_record[CLEAR_SIZE:], untrusted_record[:CLEAR_SIZE]
    )
    return _joined(clear, body)


def read_opened(untrusted_opened: bytes) -> Record:
    """A record of OPENED_SIZE bytes, which says what it says without a proof; raise NotAuthentic
    when it cannot be one of ours.
    """
    return _joined(_read_clear(untrusted_opened[:CLEAR_SIZE]), untrusted_opened[CLEAR_SIZE:])


def _joined(clear: Clear, untrusted_body: bytes) -> Record:
    try:
        secret = Secret.parse(untrusted_body)
    except ValueError as error:
        raise NotAuthentic(f"not a session record: {error}") from None
    try:
        parse_name(secret.qube, "qube")
        parse_name(secret.volume, "volume")
        parse_identity(secret.identity)
    except BadName as error:
        raise NotAuthentic(str(error)) from None
    return Record(**vars(clear), **vars(secret))
