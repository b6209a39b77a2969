"""Every fixed-size structure that crosses between dom0 and the backup VM, declared once. Numbers
are little-endian.

A reply is a series of frames, each a HEADER (kind, length) and its payload; the last frame is a
Status. A stream without a Status has failed, whatever the exit code says. Requests have no header:
their size is fixed.
"""

import struct
from dataclasses import dataclass
from typing import ClassVar, Self

from wire import FORMAT
from wire.chunks import OVERHEAD
from wire.layout import TIME, U8, U16, U32, U64, Fields, raw, text

HEADER = struct.Struct("<BI")
"""Kind of a frame, and length of its payload."""
HEADER_SIZE = HEADER.size

CHUNK_HEAD = struct.Struct("<Q32s")
"""First part of the payload of a CHUNK frame: chunk number and id. The sealed chunk follows;
nothing follows for the all-zero id, and where the caller holds the chunk already."""
CHUNK_HEAD_SIZE = CHUNK_HEAD.size
"""Bytes of the payload before the sealed chunk."""
CHUNK_FRAME = struct.Struct(HEADER.format + CHUNK_HEAD.format.removeprefix("<"))
"""HEADER, then CHUNK_HEAD."""

LENGTH = struct.Struct("<I")
"""Before each sealed chunk sent to Restore and Verify."""

END = b"SBEND\n\x00\x02"
"""Last bytes of a stream sent to Restore and Verify."""

(
    KIND_STATUS,
    KIND_VOLUME,
    KIND_ARCHIVE,
    KIND_SLOT,
    KIND_OFFER,
    KIND_MONITORED,
    KIND_CHUNK,
    KIND_RECORD,
    KIND_VERSION,
) = range(9)

REQUEST_MAGIC = b"SBRQ"
REQUEST_KNOWN = 1
"""Request flag of Extract: the caller's 32-byte chunk id for every chunk of the volume, in order,
follow the request.
"""

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

    LAYOUT: ClassVar[Fields]
    KIND: ClassVar[int] = -1

    @classmethod
    def length(cls) -> int:
        """Length in bytes; fixed."""
        return cls.LAYOUT.size

    def build(self) -> bytes:
        """The structure as bytes."""
        return self.LAYOUT.build(vars(self))

    @classmethod
    def parse(cls, untrusted_raw: bytes) -> Self:
        """Read exactly ``length()`` bytes; raise ValueError for another length or a value no field
        can have.
        """
        try:
            return cls(**cls.LAYOUT.parse(untrusted_raw))
        except ValueError as error:
            raise ValueError(f"{cls.__name__}: {error}") from None


@dataclass(frozen=True)
class Request(Layout):
    """What every service reads first. ``number`` and ``session`` mean what the service's own page
    says.
    """

    archive: bytes = bytes(16)
    session: bytes = bytes(16)
    number: int = 0
    time: int = 0
    flags: int = 0
    label: str = ""

    LAYOUT = Fields(
        magic=REQUEST_MAGIC,
        format=FORMAT.to_bytes(2, "little"),
        flags=U16,
        archive=raw(16),
        session=raw(16),
        number=U64,
        time=TIME,
        label=text(64),
    )


@dataclass(frozen=True)
class Status(Layout):
    """Last frame of every reply: see wire.status. ``detail`` is the chunk number concerned,
    or 0.
    """

    code: int
    notes: int = 0
    detail: int = 0

    KIND = KIND_STATUS
    LAYOUT = Fields(code=U16, notes=U16, detail=U64)


@dataclass(frozen=True)
class VolumeEntry(Layout):
    """One volume the caller may back up. Sizes in bytes; ``session`` and ``time`` of the newest
    committed session.
    """

    qube: str
    volume: str
    volume_id: bytes
    size: int
    changed: int
    session: bytes
    time: int
    flags: int

    @property
    def name(self) -> str:
        """The volume, for people: ``qube/volume``."""
        return f"{self.qube}/{self.volume}"

    KIND = KIND_VOLUME
    LAYOUT = Fields(
        qube=text(64),
        volume=text(64),
        volume_id=raw(16),
        size=U64,
        changed=U64,
        session=raw(16),
        time=TIME,
        flags=U16,
    )


@dataclass(frozen=True)
class ArchiveEntry(Layout):
    """What Enroll tells of an archive. ``format``: in which dom0 makes its sessions. ``key`` is the
    master key in open mode, zero in sealed mode."""

    format: int
    archive: bytes
    label: str
    mode: int
    suite: int
    chunk_size: int
    created: int
    slots: int
    key: bytes

    KIND = KIND_ARCHIVE
    LAYOUT = Fields(
        format=U16,
        archive=raw(16),
        label=text(64),
        mode=U8,
        suite=U8,
        chunk_size=U32,
        created=TIME,
        slots=U8,
        key=raw(32),
    )


@dataclass(frozen=True)
class Offer(Layout):
    """A pending session. ``changed``: how many bytes may have changed, at most; ``previous``: the
    session it builds on.
    """

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
    LAYOUT = Fields(
        volume_id=raw(16),
        session=raw(16),
        previous=raw(16),
        sequence=U64,
        time=TIME,
        size=U64,
        chunk_size=U32,
        changed=U64,
        flags=U16,
    )


@dataclass(frozen=True)
class Monitored(Layout):
    """What Monitor found: bytes that may have changed since the caller's last committed session."""

    changed: int
    size: int

    KIND = KIND_MONITORED
    LAYOUT = Fields(changed=U64, size=U64)
