# SPDX-License-Identifier: GPL-2.0-or-later
"""An archive with a retention: what is stored is locked by the store, so that no key can remove it
before its date, and what stays is locked again before its date comes.

A file is locked at once after it was stored, before a catalog or a session relies on it. A crash
between the two leaves a file that is not locked: at its end every run that writes locks what it
does not remember as locked for at least half of the retention. The dates are remembered in this
machine's catalog, never in the store, where whoever has the key for it could write any; where they
are lost, everything is locked again.

The retention is remembered on this machine, too, there and apart from the cache (lasting.py):
archive.toml can be replaced by one that says less.
"""

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from backup_vm.archive import lasting, naming
from backup_vm.archive.archive import Archive
from backup_vm.archive.catalog import ChunkCatalog
from backup_vm.archive.lease_files import FOLDER
from backup_vm.archive.parameters import LONGEST_RETENTION
from backup_vm.archive.parameters import NAME as PARAMETERS
from backup_vm.archive.storage import Storage
from backup_vm.errors import CannotLockError, SparsebakError
from backup_vm.quantities import days_text
from wire.layout import LAST_TIME

if TYPE_CHECKING:
    from backup_vm.archive.storage.vault import Left

_HELD = "held:"
_RETENTION = "retention"
_WAITING = "waiting"


class Held(NamedTuple):
    """How an archive is locked, as far as this machine knows. ``retention`` in seconds; ``until``:
    the first date that comes (Unix seconds, 0: none is known), ``last`` the last one; ``unknown``:
    how many files no date is known of; ``waiting`` bytes that were removed, and may not be removed
    for good before ``waiting_until``.
    """

    retention: int
    until: int = 0
    last: int = 0
    unknown: int = 0
    waiting: int = 0
    waiting_until: int = 0

    def late(self, now: float) -> bool:
        """Whether less than half of the retention is left of anything."""
        return bool(self.unknown) or self.until < now + self.retention / 2


def require(storage: Storage, retention: int) -> None:
    """Have everything locked in a place for a new archive; raise SparsebakError where it cannot."""
    storage.protect(retention)
    if storage.vault is not None:
        storage.vault.require()


def begin(archive: Archive) -> None:
    """When writing begins: have what is stored locked, if the archive has a retention."""
    catalog = archive.catalog
    said, known = archive.parameters.retention, _remembered(archive)
    if not (said or known):
        return
    place = archive.storage.describe(PARAMETERS)
    if said < known:
        archive.warnings.append(
            f"{place} says a retention of {days_text(said)}, and said {days_text(known)} before,"
            " which holds; somebody may have replaced that file; write it again: sparsebak init"
            " DIR --label LABEL --repair --retention TIME"
        )
    why = "only an S3-compatible store can do that"
    with suppress(CannotLockError):
        archive.storage.protect(max(said, known))
    vault = archive.storage.vault
    if vault is not None and not vault.able():
        archive.storage.vault, why = None, "its bucket has no object lock"
    if archive.storage.vault is None:
        archive.warnings.append(
            f"nothing is locked in {archive.storage.describe()}, although the archive has a"
            f" retention of {days_text(max(said, known))}: {why}"
        )
        return
    longest = max(said, known)
    if _in_catalog(catalog) < longest:
        catalog.set_meta(_RETENTION, str(longest))
    if lasting.retention(archive.storage, archive.parameters.archive) < longest:
        lasting.keep_retention(archive.storage, archive.parameters.archive, longest)


def attach(archive: Archive) -> None:
    """When reading begins: notes that it writes are locked, too, where its key can do that."""
    if archive.parameters.retention:
        with suppress(SparsebakError):
            archive.storage.protect(archive.parameters.retention)


def _remembered(archive: Archive) -> int:
    apart = lasting.retention(archive.storage, archive.parameters.archive)
    return min(max(_in_catalog(archive.catalog), apart), LONGEST_RETENTION)


def _in_catalog(catalog: ChunkCatalog) -> int:
    return min(_number(catalog.meta(_RETENTION) or ""), LONGEST_RETENTION)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0


def _date(text: str) -> int:
    return min(_number(text), LAST_TIME)


def _dates(catalog: ChunkCatalog) -> dict[str, int]:
    found = catalog.meta_with(_HELD)
    return {key.removeprefix(_HELD): _date(value) for key, value in found.items()}


def _files(storage: Storage) -> list[str]:
    """What is to be locked of what there is now."""
    found = [name for name in (PARAMETERS, naming.NOTES_FILE) if storage.exists(name)]
    for folder in ("packs", "volumes", "parity"):
        found += filter(_lasts, storage.sizes(folder))
    return found


def _lasts(name: str) -> bool:
    return naming.is_pack(name) or naming.is_session(name) or naming.is_parity(name)


def extend(archive: Archive) -> None:
    """When writing ends: lock again what is locked for less than half of the retention, or of which
    that is not known.
    """
    vault = archive.storage.vault
    if vault is None or not archive.writing:
        return
    catalog, there = archive.catalog, _files(archive.storage)
    before = _dates(catalog)
    dates = before | vault.held
    half = int(vault.now()) + vault.retention // 2
    gone = before.keys() - set(there)
    new = {name: until for name, until in vault.held.items() if name not in gone}
    catalog.begin()
    for name in gone:
        catalog.set_meta(_HELD + name, None)
    _remember(catalog, new)
    catalog.commit()
    for held in vault.hold(name for name in there if dates.get(name, 0) < half):
        catalog.begin()
        _remember(catalog, held)
        catalog.commit()
    vault.held.clear()


def _remember(catalog: ChunkCatalog, dates: dict[str, int]) -> None:
    for name, until in dates.items():
        catalog.set_meta(_HELD + name, str(until))


def give_back(archive: Archive) -> "Left | None":
    """Remove for good what was removed or replaced longer ago than the retention; None where
    removing is for good at once.

    While anything is missing or damaged nothing goes: what is below may be all that is left.
    """
    vault = archive.storage.vault
    if vault is None:
        return None
    from backup_vm.archive.storage.vault import Left

    spoilt = (f"{name} is spoilt" for name in sorted(archive.catalog.spoilt()))
    doubts = [*archive.uncertain(), *spoilt]
    if doubts:
        archive.warnings.append(
            f"nothing that was replaced or removed is removed for good: {doubts[0]}"
        )
        return Left()
    left = vault.remove_due(_ours)
    if left.refused:
        archive.warnings.append(
            f"{left.refused[0]}; a prune whose key may remove versions of objects gives their space"
            " back"
        )
    archive.catalog.set_meta(_WAITING, f"{left.waiting} {left.until}" if left.waiting else None)
    return left


def _ours(name: str) -> bool:
    return (
        _lasts(name)
        or naming.is_unfinished(name)
        or naming.is_names(name)
        or name in (PARAMETERS, naming.NOTES_FILE)
        or name.startswith(f"{FOLDER}/")
    )


def state(archive: Archive) -> Held | None:
    """What is known of locks; None for an archive that has no retention, or of which nothing can be
    locked: a copy of its files in a folder, or what it was.
    """
    catalog, storage = archive.catalog, archive.storage
    retention = max(archive.parameters.retention, _remembered(archive))
    if not retention or not (storage.elsewhere and storage.writable()):
        return None
    dates, there = _dates(catalog), _files(storage)
    known = [dates[name] for name in there if name in dates]
    waiting, _, until = (catalog.meta(_WAITING) or "").partition(" ")
    return Held(
        retention,
        min(known, default=0),
        max(known, default=0),
        len(there) - len(known),
        _number(waiting),
        _date(until),
    )
