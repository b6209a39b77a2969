"""sparsebak.List: the volumes that the caller may back up into an archive, and those it has
sessions of.

Reads the catalog and the state files. Changes nothing.
"""

from collections.abc import Iterator

from dom0_agent.catalog import VolumeCatalog, open_catalog
from dom0_agent.config import Config
from dom0_agent.keyring import ArchiveKey
from dom0_agent.log import ERROR, log
from dom0_agent.rpc.dispatch import Call
from dom0_agent.sources import Sources
from dom0_agent.tracking.rotation import changed_since
from dom0_agent.tracking.state import VolumeState, known_volumes
from wire.messages import VOLUME_GONE, VOLUME_PENDING, VolumeEntry
from wire.status import Refused


def main(call: Call) -> None:
    """Reply with a VolumeEntry for each volume."""
    archive = call.archive(call.request())
    for entry in entries(call.config, archive, call.caller):
        call.reply(entry)


def entries(config: Config, archive: ArchiveKey, caller: str) -> Iterator[VolumeEntry]:
    """The volumes of the catalog, those that nobody could tell of, then those of which only
    sessions are left.
    """
    catalog, sources = open_catalog(config, caller), Sources(config.state_dir)
    for volume in catalog.volumes():
        try:
            size = sources.open(volume).live_size()
        except Refused:
            size = 0  # Snapshot will say what is wrong with it
        yield _entry(config, archive, volume.qube, volume.volume, size, 0)
    known = list(known_volumes(config.state_dir))
    failed = {skipped.name for skipped in catalog.skipped() if skipped.failed}
    for qube in sorted(failed):  # Snapshot will say so of these, too: a run without them is no good
        for name in [name for one, name in known if one == qube] or ["private"]:
            yield _entry(config, archive, qube, name, 0, 0)
    for qube, name in known:
        if (
            qube not in failed
            and _is_gone(catalog, qube, name)
            and _follows(config, archive, qube, name)
        ):
            yield _entry(config, archive, qube, name, 0, VOLUME_GONE)


def _is_gone(catalog: VolumeCatalog, qube: str, volume: str) -> bool:
    try:
        return catalog.find(qube, volume) is None
    except Refused:  # nobody could tell just now
        return False


def _follows(config: Config, archive: ArchiveKey, qube: str, volume: str) -> bool:
    try:
        return archive.id.hex() in VolumeState(config.state_dir, qube, volume).load().follows
    except Refused:
        return False


def _entry(
    config: Config, archive: ArchiveKey, qube: str, volume: str, size: int, flags: int
) -> VolumeEntry:
    store = VolumeState(config.state_dir, qube, volume)
    try:
        follow = store.load().follows.get(archive.id.hex())
    except (
        Refused
    ) as refused:  # damaged: Snapshot says so of this one, and the others are backed up
        log(ERROR, str(refused))
        follow = None
    if follow is None:
        volume_id = archive.keys().volume_id(qube, volume)
        return VolumeEntry(qube, volume, volume_id, size, size, bytes(16), 0, flags)
    committed = follow.committed
    return VolumeEntry(
        qube=qube,
        volume=volume,
        volume_id=bytes.fromhex(follow.volume_id),
        size=size,
        changed=changed_since(store, follow, size),
        session=bytes.fromhex(committed.session) if committed else bytes(16),
        time=committed.time if committed else 0,
        flags=flags | (VOLUME_PENDING if follow.pending else 0),
    )
