# SPDX-License-Identifier: GPL-2.0-or-later
"""Volumes that dom0 remembers and that are not backed up any more: their snapshots go, wherever
they are, and what a restore of them left.

A state file remembers the volume as its last session found it (``State.place``), so that neither
qubesd nor the configuration has to know it still.
"""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.durable import Busy, closing_fd, lock, make_directory
from common.existing import children
from dom0_agent.admin.qubes_catalog import QubesCatalog
from dom0_agent.catalog import VolumeCatalog
from dom0_agent.config import Volume, recall, remember
from dom0_agent.keyring import ArchiveKey
from dom0_agent.log import WARNING, log
from dom0_agent.qubesd import asking, connect
from dom0_agent.sources import Source, Sources
from dom0_agent.sources.lvm_thin import LvmThinSource
from dom0_agent.targets.qubesd import RESTORING, take_away
from dom0_agent.tracking.identities import Identities, load
from dom0_agent.tracking.pending_log import in_use
from dom0_agent.tracking.rotation import Rotation
from dom0_agent.tracking.state import PATIENCE, State, VolumeState, known_volumes
from wire.status import Code, Refused


@dataclass(frozen=True)
class Orphan:
    """A volume that is followed and not in the catalog. ``place`` is None where nothing remembers
    it.
    """

    store: VolumeState
    state: State
    place: Volume | None

    @property
    def name(self) -> str:
        """``qube/volume``."""
        return self.store.name


def orphans(state_dir: Path, catalog: VolumeCatalog) -> Iterator[Orphan]:
    """All of them. A volume of which the catalog cannot tell (an error of qubesd) is none."""
    identities = who_is_who(state_dir, catalog)
    for identity, name in known_volumes(state_dir):
        store = VolumeState(state_dir, identity, name, identities.name(identity))
        try:
            found = catalog.find(store.qube, name)
            if found is None or found.identity != identity:
                state = store.load()
                yield Orphan(store, state, remembered(state))
        except Refused:
            continue


def who_is_who(state_dir: Path, catalog: VolumeCatalog) -> Identities:
    """The qubes' names and identities, as a catalog has found them."""
    return catalog.identities if isinstance(catalog, QubesCatalog) else load(state_dir)


def let_start(state_dir: Path) -> list[str]:
    """Let those qubes start again whose restore was killed, for until then qubesd does not start
    them; returns their names. What qubesd refuses is logged.
    """
    done = []
    for path in children(state_dir / RESTORING):
        try:
            fd = lock(path)
        except Busy:  # it continues
            continue
        with closing_fd(fd):
            try:
                with asking():
                    domains = connect().domains
                    if path.name not in domains:
                        path.unlink(missing_ok=True)
                    elif take_away(domains[path.name], path):
                        done.append(path.name)
            except Refused as refused:
                log(WARNING, f"{path.name}, whose restore was killed: {refused}")
    return done


def remembered(state: State) -> Volume | None:
    """Where the volume was at its last session."""
    try:
        return recall(state.place) if state.place else None
    except (KeyError, TypeError, ValueError):  # written by another version
        return None


def let_go(orphan: Orphan, sources: Sources) -> bool:
    """Drop the snapshots of a volume that is gone; whether there were any. What is known of its
    sessions is kept.

    Not while one of them is being sent, and not where its pool is away (a disk that is not
    mounted): they would stay for ever if nothing remembered them. Refused when somebody else works
    on it, or its storage fails.
    """
    if orphan.place is None or not _is_there(orphan.place, sources):
        return False
    source = sources.open(orphan.place)
    store = orphan.store
    with store.locked(patience=0) as state:
        source.drop_unfinished()  # what a restore that was killed had begun
        # Not what the state mentions: a snapshot that could not be removed the last time is in none
        # any more.
        if not source.snapshots():
            return False
        rotation = Rotation(store, state, source)
        pending = [progress.pending for progress in state.follows.values() if progress.pending]
        if any(in_use(store.directory / one.log) for one in pending):
            if rotation.yield_space():  # read as slowly as can be, it must not fill the pool
                rotation.finish()
            return False
        for progress in state.follows.values():
            # without a base everything is treated as changed
            progress.pending = progress.map = None
        state.base = None
        with source.together():
            rotation.finish()
        _require_gone(orphan.name, source)
    return True


def drop_in_former_pools(state_dir: Path, sources: Sources) -> Iterator[str]:
    """Drop the snapshots of volumes in pools that they are not in any more, where the pool is
    there; the names of the volumes that left one. What fails is tried again the next time.
    """
    for identity, name in known_volumes(state_dir):
        store = VolumeState(state_dir, identity, name)
        with suppress(Refused):
            if not store.load().left:
                continue
            with store.locked(patience=0) as state:
                due = [one for one in _recalled(state.left) if _is_there(one, sources)]
                for one in due:
                    _drop_all(store.name, sources.open(one))
                state.left = [remember(one) for one in _recalled(state.left) if one not in due]
                store.save(state)
                if due:
                    yield store.name


def _recalled(places: list[dict[str, Any]]) -> list[Volume]:
    found = []
    for place in places:
        with suppress(KeyError, TypeError, ValueError):  # written by another version
            found.append(recall(place))
    return found


def _drop_all(name: str, source: Source) -> None:
    with source.together():
        for number in source.snapshots():
            source.drop(number)
    _require_gone(name, source)


def _require_gone(name: str, source: Source) -> None:
    """What LVM or ZFS cannot remove now only gets a warning in the log."""
    if left := source.snapshots():
        raise Refused(
            Code.SOURCE_FAILED, f"{name}: {len(left)} of its snapshots cannot be removed yet"
        )


def forget(state_dir: Path, store: VolumeState, volume: Volume | None) -> None:
    """Drop all that is held and known of a volume: of ``volume``, if the catalog has it, and where
    it was before.

    Refused, with the record kept, when a snapshot cannot be removed, or nobody knows where to look
    for it.
    """
    make_directory(store.directory)
    try:
        fd = lock(store.directory / "lock", patience=PATIENCE)
    except Busy:
        raise Refused(Code.BUSY, f"{store.name} is busy with another operation") from None
    with closing_fd(fd):
        try:
            state = store.load()
        except Refused:  # damaged: what the catalog says is all there is
            state = State()
        maybe = (*_recalled(state.left), remembered(state), volume)
        places = {_place(one): one for one in maybe if one is not None}
        if not places and state.snapshots():
            raise Refused(
                Code.SOURCE_FAILED,
                f"{store.name}: it is not known where its snapshots are; see docs/recovery.md",
            )
        sources, away = Sources(state_dir), list[str]()
        for one in places.values():
            if _is_there(one, sources):
                _drop_all(store.name, sources.open(one))
            else:
                away.append(one.pool.name)
        if away:
            raise Refused(
                Code.SOURCE_FAILED,
                f"{store.name}: its pool {', '.join(away)} is not there, so that its snapshots in"
                f" it stay; make it available, or remove {store.directory} if it is lost",
            )
        shutil.rmtree(store.directory)
    with suppress(OSError):  # other volumes of the qube
        store.directory.parent.rmdir()


def drop_archive(state_dir: Path, archive: ArchiveKey) -> None:
    """Let go of what volumes hold for an archive that is removed: else a session that was begun
    would hold its snapshot.
    """
    archive_id = archive.id.hex()
    for identity, name in known_volumes(state_dir):
        store = VolumeState(state_dir, identity, name)
        try:
            if archive_id not in store.load().follows:
                continue
        except Refused:  # damaged, which its next session says
            continue
        with store.locked() as state:
            del state.follows[archive_id]
            place, sources = remembered(state), Sources(state_dir)
            if not any(
                progress.committed or progress.pending for progress in state.follows.values()
            ):
                state.base = None
            if place is None or not _is_there(place, sources):
                store.save(state)  # the snapshots go when the volume is next looked at
            else:
                rotation = Rotation(store, state, sources.open(place))
                with rotation.source.together():
                    rotation.finish()


def _place(volume: Volume) -> tuple[str, ...]:
    pool = volume.pool
    return pool.driver, str(pool.path), pool.volume_group, pool.thin_pool


def _is_there(volume: Volume, sources: Sources) -> bool:
    """Whether the volume's pool is: what is not found in one whose disk is away is not gone.
    Commands of ZFS say what is wrong with one of theirs.
    """
    source = sources.open(volume)
    if isinstance(source, LvmThinSource):
        return source.pool.is_there()
    if volume.pool.driver in ("zfs", "settings"):
        return True
    try:
        return any(volume.pool.path.iterdir())  # an empty folder is where a disk is to be mounted
    except OSError:
        return False
