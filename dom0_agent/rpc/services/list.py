# SPDX-License-Identifier: GPL-2.0-or-later
"""sparsebak.List: the volumes that the caller may back up into an archive, and those it has
sessions of.

Reads the catalog and the state files. Changes nothing. A catalog that is older than it should be is
told as such: what was made since is not in it.
"""

from collections.abc import Iterator

from dom0_agent.catalog import VolumeCatalog, open_catalog
from dom0_agent.config import Config
from dom0_agent.keyring import ArchiveKey
from dom0_agent.log import ERROR, log
from dom0_agent.rpc.dispatch import Call
from dom0_agent.sources import Sources
from dom0_agent.tracking.identities import load
from dom0_agent.tracking.state import VolumeState, changed_since, known_volumes
from wire import NO_SESSION
from wire.messages import VOLUME_GONE, VOLUME_PENDING, Status, VolumeEntry
from wire.status import STATUS_OLD_LIST, Code, Refused

OLD = 1800.0
"""Seconds for which a list of volumes is as good as new: a timer writes it every ten minutes."""


def main(call: Call) -> Status:
    """Reply with a VolumeEntry for each volume."""
    archive = call.archive(call.request())
    catalog = open_catalog(call.config, call.caller)
    for entry in entries(call.config, archive, catalog):
        call.reply(entry)
    if -OLD <= catalog.age <= OLD:
        return Status(Code.OK)
    return Status(Code.OK, STATUS_OLD_LIST, int(abs(catalog.age)))


def entries(config: Config, archive: ArchiveKey, catalog: VolumeCatalog) -> Iterator[VolumeEntry]:
    """The volumes of the catalog, those that nobody could tell of, then those of which only
    sessions are left.
    """
    sources, listed = Sources(config.state_dir), set[tuple[str, str]]()
    identities = load(config.state_dir)
    for volume in catalog.volumes():
        try:
            size = sources.open(volume).live_size()
        except Refused:
            size = 0  # Snapshot will say what is wrong with it
        listed.add((volume.identity, volume.volume))
        yield _entry(archive, VolumeState.of(config.state_dir, volume), size, 0)
    known = [
        VolumeState(config.state_dir, identity, name, identities.name(identity))
        for identity, name in known_volumes(config.state_dir)
    ]
    failed = {skipped.name for skipped in catalog.skipped() if skipped.failed}
    for one in sorted(failed):  # Snapshot will say so of these, too: a run without them is no good
        qube, slash, volume_name = one.partition("/")
        names = [volume_name] if slash else [one.volume for one in known if one.qube == qube]
        for name in names or ["private"]:
            store = VolumeState(config.state_dir, identities.of(qube), name, qube)
            yield _entry(archive, store, 0, 0)
    for store in known:
        if (
            failed.isdisjoint((store.qube, store.name))
            and (store.identity, store.volume) not in listed
            and _follows(archive, store)
        ):
            yield _entry(archive, store, 0, VOLUME_GONE)


def _follows(archive: ArchiveKey, store: VolumeState) -> bool:
    try:
        return archive.id.hex() in store.load().follows
    except Refused:
        return False


def _entry(archive: ArchiveKey, store: VolumeState, size: int, flags: int) -> VolumeEntry:
    qube, volume = store.qube, store.volume
    try:
        progress = store.load().follows.get(archive.id.hex())
    except Refused as refused:
        # Its state is damaged: Snapshot says so of this one, and the others are backed up.
        log(ERROR, str(refused))
        progress = None
    if progress is None:
        volume_id = archive.keys().volume_id(store.identity, volume)
        return VolumeEntry(qube, volume, volume_id, size, size, NO_SESSION, 0, flags)
    committed = progress.committed
    return VolumeEntry(
        qube=qube,
        volume=volume,
        volume_id=bytes.fromhex(progress.volume_id),
        size=size,
        changed=changed_since(store, progress, size),
        session=bytes.fromhex(committed.session) if committed else NO_SESSION,
        time=committed.time if committed else 0,
        flags=flags | (VOLUME_PENDING if progress.pending else 0),
    )
