# SPDX-License-Identifier: GPL-2.0-or-later
"""The catalog's file, and what SQLite says of it.

Whoever can write to the store may have put anything there: ``Workspace.database`` looks at it
before SQLite may.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from backup_vm import failures
from backup_vm.archive.storage import Workspace
from backup_vm.errors import LockedError, SparsebakError

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory

NAME = "catalog.sqlite"
GATHERED = "gathered.sqlite"
"""What a rebuild that was cut off leaves; see gathering.py."""
JOURNAL = "-journal"
_NOT_DAMAGE = frozenset({"FULL", "READONLY", "BUSY", "LOCKED", "NOMEM", "PERM", "AUTH"})


def folder_aside() -> "TemporaryDirectory[str]":
    """A folder for a catalog aside from the archive's: where SQLite puts its own large files, for
    /tmp is often memory.
    """
    import tempfile

    places = (os.environ.get("SQLITE_TMPDIR"), os.environ.get("TMPDIR"), "/var/tmp")  # noqa: S108  # the name in it is random
    where = next((place for place in places if place and os.access(place, os.W_OK | os.X_OK)), None)
    return tempfile.TemporaryDirectory(prefix="sparsebak-", dir=where)


def half_written(workspace: Workspace) -> bool:
    """Whether a journal is beside the catalog, that the next one who writes plays back."""
    name = NAME + JOURNAL
    return workspace.exists(name) and workspace.size(name) > 0


def copy(workspace: Workspace, folder: Path) -> Path:
    """Copy the catalog, with its journal, into a folder; returns the copy."""
    import shutil  # 2 ms, for the programs that unpack archives

    for name in (NAME, NAME + JOURNAL):
        if workspace.exists(name):
            with workspace.open(name) as source, open(folder / name, "xb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    return folder / NAME


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the catalog is at fault, so that making it again helps; not a disk that is full or
    read-only.
    """
    name = getattr(error, "sqlite_errorname", "") or ""
    return isinstance(error, sqlite3.DatabaseError) and not any(
        name.startswith(f"SQLITE_{one}") for one in _NOT_DAMAGE
    )


@contextmanager
def where_there_is_room() -> Iterator[None]:
    """For what the next run can note as well: on a full disk a prune must begin, and a scrub can
    look.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorname", "") != "SQLITE_FULL":
            raise


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Raise errors of SQLite's as ``explain`` has them."""
    try:
        yield
    except sqlite3.Error as error:
        raise explain(error, place) from None


def explain(error: sqlite3.Error, place: str, workspace: Workspace | None = None) -> SparsebakError:
    """An error of SQLite's as what it is, for people. ``place``: of the catalog, which is in that
    workspace.
    """
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith("SQLITE_FULL"):
        return SparsebakError(f"the disk of {place} is full", "make room there, then try again")
    if name.startswith(("SQLITE_READONLY", "SQLITE_PERM")):
        return SparsebakError(
            f"{place} cannot be written: it, or its disk, is read-only",
            "reading works; to write, make it writable",
        )
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return LockedError(f"{place} is in use by another program", "wait, then try again")
    if name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN")):
        # SQLite keeps to itself what the system said: a quota, say, or a disk read-only by now.
        refusal = workspace.refusal() if workspace is not None else None
        if refusal is not None:
            return SparsebakError(
                f"{place} cannot be written: {refusal.strerror}", failures.hint(refusal)
            )
        return SparsebakError(
            f"{place} cannot be read or written: {error}",
            "check its disk, and whether it is full; nothing stored is lost: it is only a cache",
        )
    return SparsebakError(
        f"{place}: {error}", "nothing stored is lost: remove this file, and it is made again"
    )
