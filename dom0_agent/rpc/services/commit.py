"""sparsebak.Commit: the caller holds the pending session durably; later sessions build on it.

Writes the volume's state and its committed chunk ids, drops the session's snapshot. Reads no
contents.
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
        rotation.commit(archive, request.session)
