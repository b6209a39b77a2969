# SPDX-License-Identifier: GPL-2.0-or-later
"""Every structure that crosses between dom0 and the backup VM, declared once: see wire.layout.
Numbers are little-endian.

A reply is a series of frames, each a HEADER (kind, length) and its payload; the last frame is a
Status. A stream without a Status has failed, whatever the exit code says. Requests have no header:
their size is fixed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from wire import FORMAT, NO_ARCHIVE, NO_SESSION
from wire.chunks import OVERHEAD
from wire.compiled import COMPILED
from wire.layout import Structure

if TYPE_CHECKING:
    from construct import Bytes, Const, GreedyRange, Int8ul, Int16ul, Int32ul, Int64ul, this

    from wire.declared import Text, Time, of


class Header(Structure, compiled=COMPILED):
    """Before the payload of each frame."""

    kind: Annotated[int, Int8ul * "kind of the frame"]
    payload_length: Annotated[int, Int32ul * "bytes of its payload, which follows"]


class Frame(Structure):
    """A frame of a reply."""

    header: Header
    payload: Annotated[bytes, Bytes(this.header.payload_length) * "its payload"]


class ReplyStream(Structure):
    """A reply; its last frame is a Status."""

    frames: Annotated[list[Frame], GreedyRange(of(Frame))]


class ChunkHead(Structure, compiled=COMPILED):
    """Beginning of the payload of a chunk's frame. The sealed chunk follows; nothing follows for
    the all-zero id, and where the caller holds the chunk already."""

    number: Annotated[int, Int64ul * "chunk number"]
    id: Annotated[bytes, Bytes(32) * "chunk id"]


class ChunkFrame(Structure, compiled=COMPILED):
    """Beginning of a chunk's frame: its header, and of its payload the first part."""

    header: Header
    head: ChunkHead


class Length(Structure, compiled=COMPILED):
    """Before each sealed chunk sent to Restore and Verify, and in an exported file."""

    sealed_length: Annotated[int, Int32ul * "bytes of the sealed chunk, which follows"]


HEADER, CHUNK_HEAD, LENGTH = Header.row(), ChunkHead.row(), Length.row()
HEADER_SIZE = HEADER.size
CHUNK_HEAD_SIZE = CHUNK_HEAD.size
"""Bytes of the payload of a chunk's frame before the sealed chunk."""
CHUNK_FRAME = ChunkFrame.row()

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
    KIND_IDS,
    KIND_WANTED,
) = range(11)

REQUEST_MAGIC = b"SBRQ"
REQUEST_KNOWN = 1
"""Request flag of Extract: the caller's 32-byte chunk id for every chunk of the volume, in order,
follow the request.
"""
REQUEST_DIFFERING = 2
"""Request flag of Restore: the caller waits to be told which chunks are wanted, after it has sent
the ids, and sends no other.
"""

OFFER_FULL = 1
"""The session lists every chunk that is not zero: it builds on no earlier session."""
OFFER_RESUMED = 2
"""The session was begun by an earlier Snapshot call and neither committed nor aborted."""

VOLUME_GONE = 1
"""Listed for its sessions only: the volume is in dom0's memory, and no longer in its list."""
VOLUME_PENDING = 2
"""A session of this volume is neither committed nor aborted."""

MODE_SEALED, MODE_OPEN = 0, 1


def largest_frame(chunk_size: int) -> int:
    """Longest payload, in bytes, that a frame of an archive with this chunk size may have."""
    return CHUNK_HEAD_SIZE + chunk_size + OVERHEAD


class Message(Structure):
    """Base of the requests and of the payloads of frames."""

    KIND: ClassVar[int] = -1
    """Kind of the frame that carries it."""


class Request(Message, compiled=COMPILED, kw_only=True):
    """What every service reads first; what ``session`` and ``number`` mean, its own page says."""

    magic: ClassVar[Annotated[bytes, Const(REQUEST_MAGIC)]]
    format: ClassVar[Annotated[int, Const(FORMAT, Int16ul)]]
    flags: Annotated[int, Int16ul * "bits: 1 ids that the caller holds follow, 2 what differs"] = 0
    archive: Annotated[bytes, Bytes(16) * "archive id"] = NO_ARCHIVE
    session: Annotated[bytes, Bytes(16) * "session id"] = NO_SESSION
    number: Annotated[int, Int64ul * "sequence, or chunk number"] = 0
    time: Annotated[int, Time * "of the run, or zero"] = 0
    label: Annotated[str, Text(64) * "an archive's label"] = ""


class Status(Message, compiled=COMPILED):
    """Last frame of every reply: see wire.status."""

    KIND = KIND_STATUS

    code: Annotated[int, Int16ul * "how the call ended"]
    flags: Annotated[int, Int16ul * "bits, what else is to be known"] = 0
    detail: Annotated[int, Int64ul * "number of the chunk concerned, or 0"] = 0


class VolumeEntry(Message, compiled=COMPILED):
    """One volume the caller may back up."""

    @property
    def name(self) -> str:
        """The volume, for people: ``qube/volume``."""
        return f"{self.qube}/{self.volume}"

    KIND = KIND_VOLUME

    qube: Annotated[str, Text(64) * "name of the qube"]
    volume: Annotated[str, Text(64) * "name of its volume"]
    volume_id: Annotated[bytes, Bytes(16) * "volume id"]
    size: Annotated[int, Int64ul * "bytes of the volume"]
    changed: Annotated[int, Int64ul * "bytes that may have changed since the newest session"]
    session: Annotated[bytes, Bytes(16) * "id of the newest committed session"]
    time: Annotated[int, Time * "time of that session, Unix seconds"]
    flags: Annotated[int, Int16ul * "bits: 1 no longer in dom0's list, 2 a session is pending"]


class ArchiveEntry(Message, compiled=COMPILED):
    """What Enroll tells of an archive."""

    KIND = KIND_ARCHIVE

    format: Annotated[int, Int16ul * "in which dom0 makes its sessions"]
    archive: Annotated[bytes, Bytes(16) * "archive id"]
    label: Annotated[str, Text(64) * "label"]
    mode: Annotated[int, Int8ul * "0 sealed, 1 open"]
    suite: Annotated[int, Int8ul * "suite"]
    chunk_size: Annotated[int, Int32ul * "bytes of a chunk"]
    created: Annotated[int, Time * "when it was made, Unix seconds"]
    slots: Annotated[int, Int8ul * "number of key slots, whose frames follow"]
    key: Annotated[bytes, Bytes(32) * "the master key in open mode, zero in sealed mode"]


class Offer(Message, compiled=COMPILED):
    """A pending session."""

    KIND = KIND_OFFER

    volume_id: Annotated[bytes, Bytes(16) * "volume id"]
    session: Annotated[bytes, Bytes(16) * "session id"]
    previous: Annotated[bytes, Bytes(16) * "id of the session it builds on"]
    sequence: Annotated[int, Int64ul * "sequence"]
    time: Annotated[int, Time * "time of the snapshot, Unix seconds"]
    size: Annotated[int, Int64ul * "bytes of the volume"]
    chunk_size: Annotated[int, Int32ul * "bytes of a chunk"]
    changed: Annotated[int, Int64ul * "bytes that may have changed, at most"]
    flags: Annotated[int, Int16ul * "bits: 1 builds on no session, 2 begun by an earlier call"]


class Monitored(Message, compiled=COMPILED):
    """What Monitor found."""

    KIND = KIND_MONITORED

    changed: Annotated[int, Int64ul * "bytes that may have changed since the caller's last session"]
    size: Annotated[int, Int64ul * "bytes of the volume"]
