# SPDX-License-Identifier: GPL-2.0-or-later
"""Giving back the space of dead chunks, of packs of which ``reclaim`` has found out what is dead:
those in which nothing lives are removed, the others get holes, and where no holes can be made those
that are mostly dead are written again.

Nothing here decides what is needed.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from backup_vm import failures
from backup_vm.archive.holes import has_block, holes
from backup_vm.archive.packs import NewPack, Packed, PackReader
from backup_vm.errors import DamagedError, ForbiddenError
from common.pipeline import in_order

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive
    from backup_vm.archive.storage import Storage

DEAD = 0.5
"""Share of a pack's chunks, by bytes, that must be dead for it to be worth its writing again."""


class Suspect:
    """A pack in question: its number, name and own index. ``dead`` and ``live``: filled when that
    is known. ``whole``: whether all of its entries are looked for, not only those that the catalog
    calls freed.
    """

    def __init__(self, number: int, name: str, entries: list[Packed], whole: bool) -> None:
        self.number, self.name, self.entries, self.whole = number, name, entries, whole
        self.dead: list[Packed] = []
        self.live: list[Packed] = []

    @property
    def mostly_dead(self) -> bool:
        """Whether it is worth its writing again."""
        dead = sum(entry.length for entry in self.dead)
        return self.whole and dead >= DEAD * (dead + sum(entry.length for entry in self.live))


def give_back(archive: "Archive", found: list[Suspect]) -> int:
    """Give back the space of dead chunks, by the cheapest way there is for each pack; returns
    bytes.
    """
    removed = _remove(archive, [pack for pack in found if pack.whole and not pack.live])
    if removed is None:
        return 0
    rest = [pack for pack in found if pack.dead and (pack.live or not pack.whole)]
    punched, freed = _punch(archive, rest)
    left = [pack for pack in rest[punched:] if pack.mostly_dead]
    return removed + freed + _rewrite(archive, left)


def _punch(archive: "Archive", packs_to_punch: list[Suspect]) -> tuple[int, int]:
    """Make holes of the dead chunks; returns of how many of the packs, from the first on, and the
    bytes given back.

    It ends at the first that takes none: storage that cannot make holes says so of every file. So
    it does where there is no room for holes; then nothing else is tried with the rest either.
    """
    storage, catalog, done, freed = archive.storage, archive.catalog, list[Suspect](), 0
    full = False
    for pack in packs_to_punch:
        there = [
            (entry.offset, entry.length)
            for entry, hole in zip(pack.dead, holes(archive, pack.name, pack.dead), strict=True)
            if not hole and has_block(entry)
        ]
        try:
            if not storage.punch(pack.name, there):
                break
        except OSError as error:  # Btrfs has to write down where they are
            if not failures.no_room(error):
                raise
            _leave(archive, error)
            full = True
            break
        freed += sum(length for _, length in there)
        done.append(pack)
        if there:
            archive.touched.add(pack.name)
    if done:
        # Durable before the catalog forgets what was freed: dying before punches it again, dying
        # after would leave space that nobody gives back.
        storage.sync()
        catalog.begin()
        for pack in done:
            catalog.set_freed(pack.number, ())
        catalog.commit()
    return len(packs_to_punch) if full else len(done), freed


def _remove(archive: "Archive", dead: list[Suspect]) -> int | None:
    """Remove packs of which nothing is needed; returns bytes given back, None where that is not
    allowed.
    """
    # Before the catalog forgets them: dying between leaves packs listed that are gone, which the
    # next run sees; the other order would leave packs that nobody lists.
    space = _gone(archive.storage, [pack.name for pack in dead])
    if isinstance(space, ForbiddenError):
        archive.warnings.append(_forbidden(space))
        return None
    if dead:
        archive.catalog.begin()
        for pack in dead:
            archive.catalog.drop_pack(pack.number)
        archive.catalog.commit()
    return space


def _gone(storage: "Storage", names: list[str]) -> int | ForbiddenError:
    """Remove packs, if they are there; returns the bytes that they took, or why that is not
    allowed: whoever may only add leaves it to whoever may remove. In any thread.
    """
    there = [name for name in names if storage.exists(name)]
    try:
        space = sum(storage.allocated(name) for name in there)
        storage.remove_all(there)
    except ForbiddenError as error:
        return error
    return space


def _forbidden(error: ForbiddenError) -> str:
    return f"{error}; a prune that may remove files reclaims the space"


def _leave(archive: "Archive", error: Exception) -> None:
    """Leave the rest for a prune that has room for it."""
    why = failures.text(error) if isinstance(error, OSError) else str(error)
    archive.warnings.append(
        f"not all space was reclaimed, for want of room to do it: {why}; the next prune does it"
    )
    archive.left_dead = True


class _Copy(NamedTuple):
    """What is live of a pack, in a new one; ``places``: id, offset and length of each chunk."""

    old: Suspect
    new: NewPack
    places: list[tuple[bytes, int, int]]


def _rewrite(archive: "Archive", old: Iterable[Suspect]) -> int:
    """Write what is live of each pack to a new one, and remove the old one; returns bytes given
    back.

    A new pack is durable, and the catalog says what is in it, before the old one goes. A damaged
    one stays, with a warning. Elsewhere several are copied, and several removed, at one time: each
    is some requests, and waiting for these is all that it takes.
    """
    storage, catalog, space = archive.storage, archive.catalog, 0
    # No more than a backup has on its way: what is copied is on this machine's disk until it is
    # there, and there twice until the old one is removed.
    several = storage.uploads

    def copied() -> Iterator[_Copy]:
        copies = in_order(lambda pack: _copy(archive, pack), old, several, several)
        with closing(copies):
            for one in copies:
                if isinstance(one, DamagedError):
                    archive.warnings.append(f"{one}; its pack was left as it is")
                    continue
                if isinstance(one, Exception):
                    _leave(archive, one)
                    break
                catalog.begin()
                number = catalog.add_pack(one.new.name, one.new.size)
                for chunk_id, offset, length in one.places:
                    catalog.put(chunk_id, number, offset, length)
                catalog.commit()
                yield one

    done = in_order(lambda one: (one, _gone(storage, [one.old.name])), copied(), several, several)
    with closing(done):
        for one, size in done:
            if isinstance(size, ForbiddenError):
                archive.warnings.append(_forbidden(size))
                break  # or all that is there would be there twice
            space += size - one.new.size
            catalog.begin()
            catalog.drop_pack(one.old.number)
            catalog.commit()
    return space


def _copy(archive: "Archive", old: Suspect) -> _Copy | Exception:
    """Copy what is live of a pack into a new one; returns damage to the old one, and want of room
    for the new one. In any thread: it leaves the catalog alone.
    """
    places = []
    try:
        pack = NewPack(archive.storage, archive.parameters.archive)
    except OSError as error:
        if failures.no_room(error):
            return error
        raise
    try:
        with PackReader(archive.storage) as reader:
            for entry in old.live:
                sealed = reader.read(old.name, entry.id, entry.offset, entry.length)
                places.append((entry.id, pack.add(entry.id, sealed), entry.length))
        pack.finish()
    except BaseException as error:
        pack.abandon()
        known = isinstance(error, DamagedError) or failures.no_room(error)
        if known and isinstance(error, Exception):
            return error
        raise
    return _Copy(old, pack, places)
