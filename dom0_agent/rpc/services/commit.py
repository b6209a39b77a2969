# SPDX-License-Identifier: GPL-2.0-or-later
"""sparsebak.Commit: the caller holds the pending session durably; later sessions build on it.

Writes the volume's state and its committed chunk ids, drops the session's snapshot. Reads no
contents.
"""

from dom0_agent.rpc.dispatch import Call
from dom0_agent.rpc.volume_call import VolumeCall


def main(call: Call) -> None:
    """Reply with nothing but the status."""
    request = call.request("session")
    on = VolumeCall.by_state(call, request)
    with on.rotation() as rotation:
        rotation.commit(on.archive, request.session)
