# SPDX-License-Identifier: GPL-2.0-or-later
"""sparsebak.Monitor: replace a volume's base snapshot by a newer one and say how much changed.

Takes and drops snapshots of the volume, writes its state. Reads no contents, except with the source
``file``.
"""

import time

from dom0_agent.rpc.dispatch import Call
from dom0_agent.rpc.volume_call import VolumeCall
from dom0_agent.tracking.state import changed_since
from wire.messages import Monitored

EVERY = 10.0
"""Seconds a base snapshot lasts, at least: a caller that asks again and again costs dom0 no
snapshot each time.
"""


def main(call: Call) -> None:
    """Reply with a Monitored frame."""
    on = VolumeCall.by_catalog(call, call.request())
    with on.rotation() as rotation:
        if not 0 <= time.time() - rotation.state.base_time < EVERY:
            rotation.monitor()
        size = rotation.source.live_size()
        progress = rotation.state.follows.get(on.archive_id)
        call.reply(
            Monitored(changed_since(rotation.store, progress, size) if progress else size, size)
        )
