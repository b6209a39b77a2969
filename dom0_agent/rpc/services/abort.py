# SPDX-License-Identifier: GPL-2.0-or-later
"""sparsebak.Abort: give the pending session up; what it would have sent goes into the next one.

Writes the volume's state, drops the session's snapshot. Reads no contents.
"""

from dom0_agent.rpc.dispatch import Call
from dom0_agent.rpc.volume_call import VolumeCall


def main(call: Call) -> None:
    """Reply with nothing but the status."""
    request = call.request("session")
    on = VolumeCall.by_state(call, request)
    with on.rotation() as rotation:
        rotation.abort(on.archive, request.session)
