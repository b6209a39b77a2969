"""Session records: what dom0 vouches for. A part in clear for the backup VM and a sealed part, authenticated together."""

import hashlib
from dataclasses import dataclass
from typing import Any

import construct as c

from wire import CHUNK_SIZES, FORMAT, MAX_VOLUME_SIZE
from wire.names import BadName, parse_name
from wire.sealing import SUITE, Keys, NotAuthentic, open_bytes, seal_bytes

MAGIC = b"SBRC"
CLEAR = c.Struct(
    "magic" / c.Const(MAGIC),
    "format" / c.Int16ul,
    "suite" / c.Int8ul,
    "reserved" / c.Const(0, c.Int8ul),
    "archive" / c.Bytes(16),
    "volume_id" / c.Bytes(16),
    "session" / c.Bytes(16),
    "sequence" / c.Int64ul,
    "time" / c.Int64ul,
    "size" / c.Int64ul,
    "chunk_size" / c.Int32ul,
)
SECRET = c.Struct(
    "qube" / c.PaddedString(64, "ascii"),
    "volume" / c.PaddedString(64, "ascii"),
    "domain" / c.Bytes(16),
    "root" / c.Bytes(32),
    "previous" / c.Bytes(32),
)
CLEAR_SIZE: int = CLEAR.sizeof()
RECORD_SIZE: int = CLEAR_SIZE + 16 + 12 + SECRET.sizeof() + 16


@dataclass(frozen=True)
class Clear:
    """What a record says without the key; to be believed only once the record has been opened."""

    archive: bytes
    volume_id: bytes
    session: bytes
    sequence: int
    time: int
    size: int
    chunk_size: int


@dataclass(frozen=True)
class Record(Clear):
    """A session record. ``previous``: digest of the record before it, zero for the first."""

    qube: str
    volume: str
    domain: bytes
    root: bytes
    previous: bytes

    def seal(self, keys: Keys) -> bytes:
        """The RECORD_SIZE bytes that leave dom0."""
        clear = self._clear()
        return clear + seal_bytes(keys.sub_key("records"), self._secret(), clear)

    def digest(self, keys: Keys) -> bytes:
        """Keyed hash of what the record says; does not depend on the random salt it was sealed with."""
        return hashlib.blake2b(self._clear() + self._secret(), digest_size=32, key=keys.sub_key("records")).digest()

    def _clear(self) -> bytes:
        return bytes(CLEAR.build({**vars(self), "format": FORMAT, "suite": SUITE}))

    def _secret(self) -> bytes:
        return bytes(SECRET.build(vars(self)))


def read_clear(untrusted_record: bytes) -> Clear:
    """The part in clear of a record of RECORD_SIZE bytes; raise NotAuthentic when it cannot be one of ours."""
    parsed = _parse(CLEAR, untrusted_record[:CLEAR_SIZE])
    if len(untrusted_record) != RECORD_SIZE:
        raise NotAuthentic("a session record has another length")
    if parsed.format != FORMAT or parsed.suite != SUITE:
        raise NotAuthentic(f"record of format {parsed.format}, suite {parsed.suite}: this version reads {FORMAT} and {SUITE}")
    if parsed.chunk_size not in CHUNK_SIZES or parsed.size > MAX_VOLUME_SIZE:
        raise NotAuthentic("record with an impossible size")
    return Clear(**{name: parsed[name] for name in Clear.__dataclass_fields__})


def open_record(untrusted_record: bytes, keys: Keys) -> Record:
    """Authenticate a record and return all it says, or raise NotAuthentic."""
    clear = read_clear(untrusted_record)
    body = open_bytes(keys.sub_key("records"), untrusted_record[CLEAR_SIZE:], untrusted_record[:CLEAR_SIZE])
    secret = _parse(SECRET, body)
    try:
        qube, volume = parse_name(secret.qube, "qube"), parse_name(secret.volume, "volume")
    except BadName as error:
        raise NotAuthentic(str(error)) from None
    return Record(**vars(clear), qube=qube, volume=volume, domain=secret.domain, root=secret.root, previous=secret.previous)


def _parse(layout: Any, raw: bytes) -> Any:
    try:
        return layout.parse(raw)
    except c.ConstructError as error:
        raise NotAuthentic(f"not a session record: {str(error).splitlines()[-1]}") from None
