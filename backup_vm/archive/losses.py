# SPDX-License-Identifier: GPL-2.0-or-later
"""What the opening of an archive finds lost or spoilt: it is noted in the catalog, and what was not
known before is named.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from backup_vm.archive import derive, naming
from backup_vm.archive.catalog import ChunkCatalog
from backup_vm.archive.catalog_base import LOST, UNREADABLE
from backup_vm.archive.listing import Listing

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive
    from backup_vm.archive.sessions import Session

_NAMED = 3


def name_lost(archive: "Archive", then: Mapping[str, int], now: Mapping[str, int]) -> None:
    """Note and name sessions that have got lost although nothing that is there builds on them.

    Rules never remove the newest session of a volume, and whoever does so by name tells the catalog
    first. Of earlier ones that are gone an old catalog cannot tell whether they were pruned since;
    if they were not, what builds on them is cut off. Not of an archive elsewhere: its catalog is
    this machine's, and another machine may have removed any.
    """
    newest = {naming.volume_of(name): name for name in naming.sessions_in(now)}
    gone = [n for n in naming.sessions_in(then) if n not in now and then[n] != UNREADABLE]
    for name in gone:
        last = newest.get(naming.volume_of(name))
        if last is None or naming.sessions_in([name, last])[1] == name:
            archive.lost.append(name)
            archive.found[name] = "it was there at the last run and is missing"
    if archive.lost:
        more = f" (and {len(archive.lost) - 1} more)" if len(archive.lost) > 1 else ""
        archive.warnings.append(
            f"{archive.storage.describe(archive.lost[-1])} is missing{more}, the newest session of"
            " its volume at the last run: put it back from a copy, before another prune"
            " reclaims its space"
        )
        archive.alarms.append(archive.warnings[-1])


def lost_newest(catalog: ChunkCatalog, sessions: Iterable[str]) -> dict[str, str]:
    """The newest session that is known to be lost of each volume of which no newer one was stored
    since, by the volume's id; given the session files that there are.
    """
    numbers: dict[str, int] = {}
    for name in sessions:
        volume = naming.volume_of(name)
        numbers[volume] = max(numbers.get(volume, 0), naming.sequence_of(name))
    return {
        volume: name
        for key, name in catalog.meta_with(LOST).items()
        if naming.is_session(name)
        and (volume := key.removeprefix(LOST)) == naming.volume_of(name)
        and naming.sequence_of(name) > numbers.get(volume, 0)
    }


def _remember_lost(archive: "Archive", catalog: ChunkCatalog, now: Listing) -> None:
    """What is lost is named once: it is the latest of its volume until another one is stored."""
    for name in archive.lost:
        catalog.set_meta(LOST + naming.volume_of(name), name)
    still = lost_newest(catalog, filter(naming.is_session, now.files))
    for key in catalog.meta_with(LOST):
        if key.removeprefix(LOST) not in still:
            catalog.set_meta(key, None)


def spoil(
    catalog: ChunkCatalog, files: Iterable[str], volumes: "Mapping[str, Sequence[Session]]"
) -> None:
    """Remember spoilt session files. ``volumes``: sessions by volume id, oldest first.

    A volume of which one is spoilt since its last full session gets a full one next: earlier ones
    do not matter to it.
    """
    newest: dict[str, str] = {}
    for name in files:
        catalog.add_spoilt([name])
        volume = naming.volume_of(name)
        newest[volume] = max(newest.get(volume, ""), name)
    for volume, name in newest.items():
        if name >= max((one.file for one in volumes.get(volume, ()) if one.full), default=""):
            catalog.marks.compare(volume)


def conclude(archive: "Archive", catalog: ChunkCatalog, now: Listing, lacking: set[str]) -> None:
    """Note what the catalog is made for now, and what is spoilt; commit. What was not known before
    is named.
    """
    volumes = archive.sessions()
    reasons = dict.fromkeys(lacking, "chunks of it are missing")
    reasons |= {name: str(error) for name, error in archive.damaged.items()}
    reasons |= archive.cut_off(volumes)
    known = catalog.spoilt()
    reasons |= derive.damaged(archive, known.intersection(now.files) - reasons.keys())
    new = {name: reason for name, reason in reasons.items() if name not in known}
    if new:
        archive.storage.check()  # or it may be what another run moves that has our lease by now
    catalog.set_spoilt(known & reasons.keys())
    spoil(catalog, new, volumes)
    catalog.set_files(
        {n: UNREADABLE if n in archive.damaged else size for n, size in now.files.items()},
        now.seen(now.files),
    )
    _remember_lost(archive, catalog, now)
    if not archive.damaged:
        catalog.marks.storing = False
    catalog.commit()
    archive.found |= new
    times = {one.file: one.name for series in volumes.values() for one in series}
    by_volume: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(new):
        by_volume[naming.volume_of(name)].append(name)
    for volume, names in by_volume.items():
        listed = ", ".join(times.get(name, name.rpartition("/")[2]) for name in names[:_NAMED])
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        archive.warnings.append(
            f"volume {volume}: spoilt: {listed}{more} ({new[names[0]]}); "
            "the next backup compares it in full and stores again what it can"
        )
        archive.alarms.append(archive.warnings[-1])
