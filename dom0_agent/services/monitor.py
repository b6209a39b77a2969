"""sparsebak.Monitor: walk a volume's base snapshot on and say how much changed.

Takes and drops snapshots of the volume, writes its state. Reads no contents, except with the source ``file``.
"""

from dom0_agent.rotation import changed_since, volume_rotation
from dom0_agent.service import Call
from wire.frames import Monitored


def main(call: Call) -> None:
    """Reply with a Monitored frame."""
    archive = call.archive(call.request())
    volume = call.volume()
    with volume_rotation(call.config.state_dir, volume, call.archives().by_id()) as rotation:
        rotation.monitor()
        size = rotation.source.live_size()
        follow = rotation.state.follows.get(archive.id.hex())
        call.reply(Monitored(changed_since(rotation.store, follow, size) if follow else size, size))
