# SPDX-License-Identifier: GPL-2.0-or-later
"""One session on its way from the agent into packs and a partial session: the Extract of a backup
run.
"""

from collections.abc import Callable

from backup_vm.agent.call import Reply
from backup_vm.archive.archive import Archive
from backup_vm.archive.pack_writer import PackWriter
from backup_vm.archive.partial import Partial
from backup_vm.archive.sessions import Session
from backup_vm.errors import AgentError
from wire.merkle import chunk_count
from wire.messages import (
    CHUNK_HEAD,
    CHUNK_HEAD_SIZE,
    KIND_CHUNK,
    KIND_RECORD,
    OFFER_FULL,
    Offer,
    VolumeEntry,
)


class Coming:
    """A session that the agent offers, and what is here of its volume.

    ``newest``: the session that it builds on, unless it is full; ``partial``: what has come of it
    so far; ``resumed``: whether an earlier run began it.
    """

    def __init__(
        self,
        volume: VolumeEntry,
        offer: Offer,
        newest: Session | None,
        partial: Partial,
        resumed: bool = False,
    ) -> None:
        self.volume, self.offer, self.newest = volume, offer, newest
        self.partial, self.resumed = partial, resumed

    @property
    def full(self) -> bool:
        """Whether it builds on no other session."""
        return bool(self.offer.flags & OFFER_FULL)

    @property
    def chunks(self) -> int:
        """Chunks of the volume."""
        return chunk_count(self.offer.size, self.offer.chunk_size)

    @property
    def inherit(self) -> int:
        """The chunk number up to which what it does not list is as in the session it builds on."""
        if self.full or self.newest is None:
            return 0
        return min(self.newest.chunks, self.chunks)  # what is beyond a volume that shrank is gone

    def receive(
        self, reply: Reply, writer: PackWriter, after_each: Callable[[], None]
    ) -> tuple[bytes, int]:
        """Take the frames of Extract in; returns the session's record, and how many chunks came.

        Raises AgentError for a frame that does not belong there: chunks come in rising order, none
        twice and none that was received before, and the record comes last.
        """
        record, following, count = b"", self.partial.position, 0
        for kind, payload in reply.frames():
            if kind == KIND_RECORD:
                record = payload
                continue
            number, chunk_id = self.chunks, b""
            if len(payload) >= CHUNK_HEAD_SIZE:
                number, chunk_id = CHUNK_HEAD.unpack_from(payload)
            if kind != KIND_CHUNK or record or not following <= number < self.chunks:
                raise AgentError(
                    f"Extract {self.volume.name}: the agent sent a frame that does not belong there"
                )
            following = number + 1
            writer.chunk(self.partial, number, chunk_id, memoryview(payload)[CHUNK_HEAD_SIZE:])
            count += 1
            after_each()
        return record, count

    def store(self, archive: Archive, record: bytes) -> Session:
        """Make a session of it, when all its chunks are durable; raise DamagedError."""
        return archive.store_session(self.partial, record, self.offer.previous, self.inherit)
