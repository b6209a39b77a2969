"""Every fixed-size structure that crosses between dom0 and the backup VM, declared once. Numbers are little-endian.

A reply is a series of frames, each a HEADER (kind, length) and its payload; the last frame is a Status. A stream
without a Status has failed, whatever the exit code says. Requests have no header: their size is fixed.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import construct as c

from wire.sealing import OVERHEAD

HEADER = c.Struct("kind" / c.Int8ul, "length" / c.Int32ul).compile()
HEADER_SIZE = 5

CHUNK_FRAME = c.Struct("kind" / c.Int8ul, "length" / c.Int32ul, "number" / c.Int64ul, "id" / c.Bytes(32)).compile()
"""HEADER and first part of the payload of a CHUNK frame. The sealed chunk follows; nothing follows for the all-zero id,
and where the caller holds the chunk already."""
CHUNK_HEAD_SIZE = 40
"""Bytes of the payload before the sealed chunk."""

LENGTH = c.Int32ul
"""Before each sealed chunk sent to Restore and Verify."""

END = b"SBEND\n\x00\x01"
"""Last bytes of a stream sent to Restore and Verify."""

KIND_STATUS, KIND_VOLUME, KIND_ARCHIVE, KIND_SLOT, KIND_OFFER, KIND_MONITORED, KIND_CHUNK, KIND_RECORD, KIND_VERSION = range(9)

REQUEST_MAGIC = b"SBRQ"
REQUEST_KNOWN = 1
"""Request flag of Extract: the caller's 32-byte chunk id for every chunk of the volume, in order, follow the request."""

OFFER_FULL = 1
"""The session lists every chunk that is not zero: it builds on no earlier session."""
OFFER_RESUMED = 2
"""The session was begun by an earlier Snapshot call and neither committed nor aborted."""

VOLUME_GONE = 1
"""Listed for its sessions only: the volume is in dom0's memory but no longer in its catalog."""
VOLUME_PENDING = 2
"""A session of this volume is neither committed nor aborted."""

MODE_SEALED, MODE_OPEN = 0, 1


def largest_frame(chunk_size: int) -> int:
    """Longest payload, in bytes, that a frame of an archive with this chunk size may have."""
    return CHUNK_HEAD_SIZE + chunk_size + OVERHEAD


class Layout:
    """Base of the structures below: a frozen dataclass whose fields are those of its LAYOUT."""

    LAYOUT: ClassVar[Any]
    KIND: ClassVar[int] = -1

    @classmethod
    def length(cls) -> int:
        """Length in bytes; fixed."""
        return int(cls.LAYOUT.sizeof())

    def build(self) -> bytes:
        """The structure as bytes."""
        return bytes(self.LAYOUT.build(vars(self)))

    @classmethod
    def parse(cls, untrusted_raw: bytes) -> Self:
        """Read exactly ``length()`` bytes; raise ValueError for another length or a value no field can have."""
        if len(untrusted_raw) != cls.length():
            raise ValueError(f"{cls.__name__}: {len(untrusted_raw)} bytes where {cls.length()} belong")
        try:
            parsed = cls.LAYOUT.parse(untrusted_raw)
        except c.ConstructError as error:
            raise ValueError(f"{cls.__name__}: {str(error).splitlines()[0]}") from None
        return cls(**{field.name: parsed[field.name] for field in fields(cls)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Request(Layout):
    """What every service reads first. ``number`` and ``session`` mean what the service's own page says."""

    archive: bytes = bytes(16)
    session: bytes = bytes(16)
    number: int = 0
    time: int = 0
    flags: int = 0
    label: str = ""

    LAYOUT = c.Struct(
        "magic" / c.Const(REQUEST_MAGIC),
        "format" / c.Const(1, c.Int16ul),
        "flags" / c.Int16ul,
        "archive" / c.Bytes(16),
        "session" / c.Bytes(16),
        "number" / c.Int64ul,
        "time" / c.Int64ul,
        "label" / c.PaddedString(64, "ascii"),
    )


@dataclass(frozen=True)
class Status(Layout):
    """Last frame of every reply: see wire.status. ``detail`` is the chunk number concerned, or 0."""

    code: int
    notes: int = 0
    detail: int = 0

    KIND = KIND_STATUS
    LAYOUT = c.Struct("code" / c.Int16ul, "notes" / c.Int16ul, "detail" / c.Int64ul)


@dataclass(frozen=True)
class VolumeEntry(Layout):
    """One volume the caller may back up. Sizes in bytes; ``session`` and ``time`` of the newest committed session."""

    qube: str
    volume: str
    volume_id: bytes
    size: int
    changed: int
    session: bytes
    time: int
    flags: int

    KIND = KIND_VOLUME
    LAYOUT = c.Struct(
        "qube" / c.PaddedString(64, "ascii"),
        "volume" / c.PaddedString(64, "ascii"),
        "volume_id" / c.Bytes(16),
        "size" / c.Int64ul,
        "changed" / c.Int64ul,
        "session" / c.Bytes(16),
        "time" / c.Int64ul,
        "flags" / c.Int16ul,
    )


@dataclass(frozen=True)
class ArchiveEntry(Layout):
    """What Enroll tells of an archive. ``key`` is the master key in open mode, zero in sealed mode."""

    archive: bytes
    label: str
    mode: int
    suite: int
    chunk_size: int
    created: int
    slots: int
    key: bytes

    KIND = KIND_ARCHIVE
    LAYOUT = c.Struct(
        "archive" / c.Bytes(16),
        "label" / c.PaddedString(64, "ascii"),
        "mode" / c.Int8ul,
        "suite" / c.Int8ul,
        "chunk_size" / c.Int32ul,
        "created" / c.Int64ul,
        "slots" / c.Int8ul,
        "key" / c.Bytes(32),
    )


@dataclass(frozen=True)
class Offer(Layout):
    """A pending session. ``changed``: how many bytes may have changed, at most; ``previous``: the session it builds on."""

    volume_id: bytes
    session: bytes
    previous: bytes
    sequence: int
    time: int
    size: int
    chunk_size: int
    changed: int
    flags: int

    KIND = KIND_OFFER
    LAYOUT = c.Struct(
        "volume_id" / c.Bytes(16),
        "session" / c.Bytes(16),
        "previous" / c.Bytes(16),
        "sequence" / c.Int64ul,
        "time" / c.Int64ul,
        "size" / c.Int64ul,
        "chunk_size" / c.Int32ul,
        "changed" / c.Int64ul,
        "flags" / c.Int16ul,
    )


@dataclass(frozen=True)
class Monitored(Layout):
    """What Monitor found: bytes that may have changed since the caller's last committed session."""

    changed: int
    size: int

    KIND = KIND_MONITORED
    LAYOUT = c.Struct("changed" / c.Int64ul, "size" / c.Int64ul)
