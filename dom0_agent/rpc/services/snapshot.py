# SPDX-License-Identifier: GPL-2.0-or-later
"""sparsebak.Snapshot: begin a session of a volume, or offer again the one already begun.

The request's session and number are the archive's newest session of the volume and its sequence
number, its time the time of the caller's run. Takes and drops snapshots, writes the volume's state.
Reads no contents, except with ``file``.
"""

from common.durable import closing_fd
from dom0_agent.bitmap import Bitmap, grains_per_chunk
from dom0_agent.rpc.dispatch import Call
from dom0_agent.rpc.volume_call import VolumeCall
from dom0_agent.sources import Unreadable
from dom0_agent.tracking.progress import Pending
from dom0_agent.tracking.rotation import Rotation
from wire import NO_SESSION
from wire.merkle import chunk_count
from wire.messages import OFFER_FULL, OFFER_RESUMED, Offer


def main(call: Call) -> None:
    """Reply with an Offer."""
    request = call.request("session", "number", "time")
    on = VolumeCall.by_catalog(call, request)
    chunk_size = on.archive.chunk_size
    with on.rotation() as rotation:
        progress, pending, resumed = rotation.snapshot(on.archive, on.volume, request)
        offer = Offer(
            volume_id=bytes.fromhex(progress.volume_id),
            session=bytes.fromhex(pending.session),
            previous=NO_SESSION
            if pending.full or not progress.committed
            else bytes.fromhex(progress.committed.session),
            sequence=pending.sequence,
            time=pending.time,
            size=pending.size,
            chunk_size=chunk_size,
            changed=_at_most(rotation, pending, chunk_size),
            flags=(OFFER_FULL if pending.full else 0) | (OFFER_RESUMED if resumed else 0),
        )
    call.reply(offer)


def _at_most(rotation: Rotation, pending: Pending, chunk_size: int) -> int:
    """Bytes in chunks that may have to be sent: those that may have changed, or, of a full session,
    those that hold data.
    """
    if not pending.full:
        wanted = rotation.store.load_bitmap(pending.map, pending.size)
    else:
        wanted = Bitmap()
        try:
            with closing_fd(rotation.source.open(pending.snapshot)) as fd:
                for start, end in rotation.source.data_ranges(fd, 0, pending.size):
                    wanted.mark(start, end)
        except Unreadable:  # which Extract finds, and gives the session up
            wanted = Bitmap.everything(pending.size)
    runs = wanted.runs(grains_per_chunk(chunk_size), chunk_count(pending.size, chunk_size))
    return sum(end - first for first, end in runs) * chunk_size
