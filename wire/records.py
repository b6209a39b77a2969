"""Session records: what dom0 vouches for. A part in clear for the backup VM and a sealed part,
authenticated together.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from wire import CHUNK_SIZES, DEDUP_DOMAIN_SIZE, FORMAT, MAX_VOLUME_SIZE, other_format
from wire.chunks import SUITES, DomainKeys, Keys, NotAuthentic, open_bytes, seal_bytes
from wire.layout import TIME, U8, U16, U32, U64, Fields, raw, text
from wire.names import BadName, parse_name

MAGIC = b"SBRC"
CLEAR = Fields(
    magic=MAGIC,
    format=U16,
    suite=U8,
    reserved=b"\0",
    archive=raw(16),
    volume_id=raw(16),
    session=raw(16),
    sequence=U64,
    time=TIME,
    size=U64,
    chunk_size=U32,
)
SECRET = Fields(
    qube=text(64),
    volume=text(64),
    dedup_domain=raw(DEDUP_DOMAIN_SIZE),
    root=raw(32),
    previous=raw(32),
)
CLEAR_SIZE = CLEAR.size
RECORD_SIZE = CLEAR_SIZE + 16 + 12 + SECRET.size + 16


@dataclass(frozen=True)
class Clear:
    """What a record says without the key; to be believed only once the record has been opened.
    ``suite``: see wire.chunks.
    """

    suite: int
    archive: bytes
    volume_id: bytes
    session: bytes
    sequence: int
    time: int
    size: int
    chunk_size: int


@dataclass(frozen=True)
class Record(Clear):
    """A session record. ``dedup_domain`` says which keys the image needs; ``previous``: digest of
    the record before it, zero for the first."""

    qube: str
    volume: str
    dedup_domain: bytes
    root: bytes
    previous: bytes

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

    def domain_keys(self, keys: Keys) -> DomainKeys:
        """The keys that its image is opened with."""
        return keys.of_domain(self.dedup_domain, self.suite)

    def _clear(self) -> bytes:
        return CLEAR.build({**vars(self), "format": FORMAT})

    def _secret(self) -> bytes:
        return SECRET.build(vars(self))


def read_clear(untrusted_record: bytes) -> Clear:
    """The part in clear of a record of RECORD_SIZE bytes; raise NotAuthentic when it cannot be one
    of ours.
    """
    if len(untrusted_record) != RECORD_SIZE:
        raise NotAuthentic("a session record has another length")
    parsed = _parse(CLEAR, untrusted_record[:CLEAR_SIZE])
    number, clear = parsed.pop("format"), Clear(**parsed)
    if number != FORMAT:
        raise NotAuthentic(f"record of {other_format(number)[0]}")
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
    secret = _parse(SECRET, body)
    try:
        parse_name(secret["qube"], "qube")
        parse_name(secret["volume"], "volume")
    except BadName as error:
        raise NotAuthentic(str(error)) from None
    return Record(**vars(clear), **secret)


def _parse(layout: Fields, untrusted_raw: bytes) -> dict[str, Any]:
    try:
        return layout.parse(untrusted_raw)
    except ValueError as error:
        raise NotAuthentic(f"not a session record: {error}") from None
