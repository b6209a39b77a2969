# SPDX-License-Identifier: GPL-2.0-or-later
"""What a catalog knows that one which is made in its place would not: it is carried over.

A rebuild takes over all of it. Where the catalog was lost or cannot be read any more the packs that
scrubs found rotten are looked through (notes.json has them), what is spoilt follows from what is
missing then, files elsewhere are locked again, and the retention is remembered apart from the
cache (lasting.py). Nothing tells then that there was a notes.json, or that the newest session of a
volume is missing, except dom0 at the next backup.
"""

import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from backup_vm.archive import catalog_file, derive
from backup_vm.archive.catalog import ChunkCatalog
from backup_vm.archive.storage import TEMPORARY
from backup_vm.errors import DamagedError

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive


class Remembered(NamedTuple):
    """What a catalog knows that cannot be found out by making it again without reading
    every pack.
    """

    spoilt: frozenset[str] = frozenset()
    compare: tuple[str, ...] = ()
    rotten: tuple[tuple[str, int], ...] = ()
    lasting: tuple[tuple[str, str], ...] = ()
    doubted: tuple[str, ...] = ()
    entire: bool = False
    """Whether that is all of it: else what a scrub noted is looked at again."""

    @classmethod
    def of(cls, catalog: ChunkCatalog | None) -> "Remembered":
        """As far as it can still be read."""
        if catalog is None:
            return cls()
        reads: dict[str, Callable[[], Any]] = {
            "lasting": catalog.lasting,
            "spoilt": lambda: frozenset(catalog.spoilt()),
            "compare": lambda: tuple(catalog.marks.to_compare()),
            "rotten": lambda: tuple(catalog.rotten()),
            "doubted": catalog.doubted_packs,
        }
        found: dict[str, Any] = {}
        for name, read in reads.items():
            with suppress(sqlite3.DatabaseError):
                found[name] = read()
        return cls(**found, entire=len(found) == len(reads))

    def doubts(self, archive: "Archive", unlisted: IO[bytes] | None = None) -> derive.Doubts:
        """What packs may not hold. Where no catalog tells that any more, the packs are looked
        through of which scrubs noted it. ``unlisted``: see derive.Doubts.
        """
        packs = () if self.entire else self._noted(archive)
        return derive.Doubts(self.rotten, (*self.doubted, *packs), unlisted)

    def _noted(self, archive: "Archive") -> tuple[str, ...]:
        """Packs that scrubs noted to have places that are damaged."""
        from backup_vm.archive import notes

        try:
            noted = notes.load(archive.storage)
        except (DamagedError, OSError):  # reported whenever they are read
            return ()
        bad = noted.unsound | noted.rotten
        return tuple(name for name in archive.pack_files() if notes.short(name) in bad)


def end_replacing(archive: "Archive") -> None:
    """A run died while it made a catalog. One that is whole takes the place of the one that was
    removed for it: it knows what that one knew. Any other goes.
    """
    workspace, half = archive.storage.workspace, catalog_file.NAME + TEMPORARY
    if not workspace.exists(half):
        return
    if not workspace.exists(catalog_file.NAME):
        with suppress(DamagedError):
            if _whole(archive, workspace.database(half)):
                workspace.discard(catalog_file.NAME)  # its journal would be played back into this
                os.replace(workspace.database(half), workspace.database(catalog_file.NAME))
    workspace.discard(half)


def _whole(archive: "Archive", path: Path) -> bool:
    try:
        catalog = ChunkCatalog(path, alone=True)
        try:
            return catalog.sound_for(archive.parameters.archive)
        finally:
            catalog.close()
    except sqlite3.DatabaseError as error:
        if not catalog_file.is_damage(error):
            raise
        return False
