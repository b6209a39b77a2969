# SPDX-License-Identifier: GPL-2.0-or-later
"""Giving space back. The catalog only says where to look: packs' own indexes and the session files
decide.

In one reading of all sessions and partial sessions, each compared with its digest on the way, it is
found which chunks of the packs in question are referred to. Order: the catalog says durably what is
freed and where the rest is; then their space is given back (``giving_back``). Dying anywhere
between, it is done again by the next writer.

While a session is missing or cannot be read, nobody knows what it refers to, and nothing is given
back.

In a store elsewhere, a pack of which no session or partial session has ever named a chunk, as far
as the catalog knows, stays for a day: it may be of a run on another machine that was cut off before
it could leave there what it had, and that resumes from its own partial session.
"""

from collections.abc import Collection, Iterator
from typing import IO, TYPE_CHECKING

from backup_vm.archive import packs, references
from backup_vm.archive.giving_back import DEAD, Suspect, give_back
from backup_vm.archive.packs import PackReader
from backup_vm.errors import DamagedError
from wire.chunks import ID_SIZE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from backup_vm.archive.archive import Archive

UNNAMED = 24 * 3600.0
"""Seconds, by the store's clock, for which a pack that no session has named stays."""
_AT_ONCE = 1 << 21
"""Chunks of packs looked for in one reading of the sessions: about 100 MiB of memory."""


def reclaim(archive: "Archive", candidates: IO[bytes] | None = None) -> tuple[int, int]:
    """Give back what nothing needs; returns chunks freed and bytes given back.

    What is dead is found in one reading of all sessions, each compared with its digest on the way.
    A count of references for each chunk would have to be right after every crash, on every machine
    that writes; the sessions are.

    ``candidates``: a file of ids that sessions referred to which are gone.
    """
    catalog, marks = archive.catalog, archive.catalog.marks
    # A session that is missing or damaged may refer to any chunk, and may be put back from a copy.
    doubts = archive.uncertain()
    if doubts:
        _leave_all(archive, doubts[0])
        # Named in this run alone: what they need is given back by another prune, not by whichever
        # run writes next, whose user has not read the name.
        if archive.lost:
            marks.reclaiming = False
        return 0, 0
    # Durable before the first hole: what a hole takes cannot be seen from names and sizes, so that
    # a run which finds this set looks at every pack.
    marks.reclaiming = True
    catalog.begin()
    try:
        for part in references.parts(candidates):
            catalog.suspect(part)
        freed = _give_back_by_groups(archive)
    except DamagedError as error:
        catalog.rollback()
        catalog.suspect_nothing()
        _leave_all(archive, error)
        marks.reclaiming = False
        return 0, 0
    except BaseException:
        catalog.rollback()
        raise
    marks.reclaiming = False
    return freed


def _leave_all(archive: "Archive", why: object) -> None:
    """Say that nothing is given back, and have all of it looked at again when that has ended."""
    archive.warnings.append(f"no space is reclaimed: {why}")
    archive.left_listed = True
    archive.catalog.marks.storing = archive.catalog.marks.unclaimed = True


def _give_back_by_groups(archive: "Archive") -> tuple[int, int]:
    """What ``reclaim`` does and returns, within a transaction that was begun; it is committed at
    the end, and after each group of packs.
    """
    catalog = archive.catalog
    chunks, space, waiting = 0, 0, _of_others(archive)
    for group in _groups(archive, waiting):
        _judge(archive, group)
        chunks += _settle(archive, group)
        catalog.commit()
        # At once, and not of all groups at the end: what is known of every pack of a large
        # archive does not fit into memory.
        space += give_back(archive, [pack for pack in group if pack.dead or pack.whole])
        catalog.begin()
    catalog.suspect_nothing()
    catalog.marks.unclaimed = bool(waiting) or archive.left_dead or archive.left_listed
    catalog.marks.storing |= archive.left_listed
    catalog.commit()
    return chunks, space


def _of_others(archive: "Archive") -> set[str]:
    """Names of packs that may be of another machine's run which was cut off today."""
    catalog, storage = archive.catalog, archive.storage
    if not storage.elsewhere or not catalog.marks.unclaimed:
        return set()
    unnamed = {
        name
        for number, name in catalog.packs().items()
        if not catalog.freed_in(number) and not catalog.ids_in(number)
    }
    return {name for name, age in storage.ages(unnamed).items() if age < UNNAMED}


def _groups(archive: "Archive", waiting: Collection[str]) -> Iterator[list[Suspect]]:
    """The packs in question, so many at a time as one reading of the sessions can answer for;
    not those ``waiting``.
    """
    group: list[Suspect] = []
    for pack in _in_question(archive, waiting):
        group.append(pack)
        if sum(len(one.entries) for one in group) >= _AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _in_question(archive: "Archive", waiting: Collection[str]) -> Iterator[Suspect]:
    catalog, names = archive.catalog, archive.catalog.packs()
    wanted = list(names) if catalog.marks.unclaimed else catalog.packs_with_freed()
    numbers = {names[number]: number for number in wanted if names[number] not in waiting}
    for name, index in packs.indexes(archive.storage, numbers, archive.parameters.archive):
        number = numbers[name]
        freed = dict(catalog.freed_in(number))
        if isinstance(index, Exception):
            archive.storage.check()  # see losses.conclude
            archive.warnings.append(f"{index}; none of its space is reclaimed")
            archive.left_listed = True  # what is in question there stays in the catalog
            continue
        listed = catalog.ids_in(number)
        if catalog.marks.unclaimed:
            freed |= {e.offset: e.length for e in index if e.id not in listed}
        mine = [one for one in index if freed.get(one.offset) == one.length]
        live = sum(one.length for one in index if one.id in listed and one.offset not in freed)
        dead = sum(one.length for one in mine)
        mostly = not listed or (dead > 0 and dead >= DEAD * (dead + live))
        if mine or freed or not listed:
            yield Suspect(number, names[number], index if mostly else mine, mostly)


def _judge(archive: "Archive", group: list[Suspect]) -> None:
    """Find out what is referred to. Raises DamagedError when a session is not what was written."""
    import numpy as np

    joined = b"".join(entry.id for pack in group for entry in pack.entries)
    if not joined:
        return
    ids = np.frombuffer(joined, np.uint8).reshape(-1, ID_SIZE)
    # Each prefix once, however many packs have the chunk: what the sessions are compared with is
    # in memory for the whole reading.
    wanted, where = np.unique(references.prefixes(ids), return_inverse=True)
    live = iter(referred_to(archive, wanted)[where.ravel()].tolist())
    for pack in group:
        for entry in pack.entries:
            (pack.live if next(live) else pack.dead).append(entry)


def referred_to(archive: "Archive", wanted: "NDArray[np.uint64]") -> "NDArray[np.bool_]":
    """Of each id prefix, in rising order, whether any session or partial session has it."""
    import numpy as np

    live = np.zeros(len(wanted), np.bool_)
    names = references.files(archive)
    archive.storage.fetch([name for name in names if name.endswith(".session")])
    for name in names:
        for column in references.proven_ids(archive, name):
            at = references.positions(wanted, column)
            live[at[at < len(wanted)]] = True
    return live


def _divide(archive: "Archive", pack: Suspect, numbers: dict[str, int], reader: PackReader) -> None:
    """Count as dead what of a pack's live chunks another copy stands for; what lives here and the
    catalog does not have here is put into it.
    """
    catalog = archive.catalog
    places = catalog.places(entry.id for entry in pack.live)
    kept = []
    for entry in pack.live:
        place = places.get(entry.id)
        here = place is not None and numbers[place.pack] == pack.number
        if here and place is not None and place.offset == entry.offset:
            kept.append(entry)
        # Before one of two copies goes, the other is read: its row may be wrong.
        elif place is not None and reader.sound(
            place.pack, entry._replace(offset=place.offset, length=place.length)
        ):
            pack.dead.append(entry)  # another copy is the one that counts
        else:  # the catalog called it freed, or does not know of it, and a session needs it
            if reader.sound(pack.name, entry):
                catalog.put(entry.id, pack.number, entry.offset, entry.length)
            kept.append(entry)
    pack.live = kept


def _settle(archive: "Archive", group: list[Suspect]) -> int:
    """Bring the catalog to what was found; returns how many chunks are freed."""
    catalog, freed = archive.catalog, 0
    numbers = {name: number for number, name in catalog.packs().items()}
    with PackReader(archive.storage) as reader:
        for pack in group:
            _divide(archive, pack, numbers, reader)
            listed = catalog.in_pack(pack.number)
            wrong = [e.id for e in pack.dead if listed.get(e.offset) == e.id]
            catalog.remove(*wrong)
            freed += len(wrong)
            catalog.set_freed(pack.number, ((e.offset, e.length) for e in pack.dead))
    return freed
