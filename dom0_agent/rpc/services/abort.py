"""sparsebak.Abort: give the pending session up; what it would have sent goes into the next one.

Writes the volume's state, drops the session's snapshot. Reads no contents.
"""

from dom0_agent.rpc.dispatch import Call
from dom0_agent.tracking.rotation import volume_rotation


def main(call: Call) -> None:
    """Reply with nothing but the status."""
    request = call.request("session")
    archive = call.archive(request)
    with volume_rotation(
        call.config.state_dir, call.pending_volume(), call.archives().by_id()
    ) as rotation:
        rotation.abort(archive, request.session)
