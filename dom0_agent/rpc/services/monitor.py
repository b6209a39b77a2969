"""sparsebak.Monitor: walk a volume's base snapshot on and say how much changed.

Takes and drops snapshots of the volume, writes its state. Reads no contents, except with the source
``file``.
"""

import time

from dom0_agent.rpc.dispatch import Call
from dom0_agent.tracking.rotation import changed_since, volume_rotation
from wire.messages import Monitored

EVERY = 10.0
"""Seconds a base snapshot lasts, at least: a caller that asks again and again costs dom0 no
snapshot each time.
"""


def main(call: Call) -> None:
    """Reply with a Monitored frame."""
    archive = call.archive(call.request())
    volume = call.volume()
    with volume_rotation(call.config.state_dir, volume, call.archives().by_id()) as rotation:
        if not 0 <= time.time() - rotation.state.base_time < EVERY:
            rotation.monitor()
        size = rotation.source.live_size()
        follow = rotation.state.follows.get(archive.id.hex())
        call.reply(Monitored(changed_since(rotation.store, follow, size) if follow else size, size))
