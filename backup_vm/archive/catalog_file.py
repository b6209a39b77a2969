"""The file that the catalog lies in, before SQLite opens it: whoever can write to the store may have put anything there.

SQLite does what a database file says: it runs triggers and views, follows links, creates or removes the files that belong to
a database (journal, WAL), and removes the super-journal that a journal names, wherever that lies. So all of that is looked
at first. What does not pass is no catalog of ours, and is made again from packs and sessions.
"""

import os
import shutil
import sqlite3
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from backup_vm.errors import LockedError, SparsebakError

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory

NAME = "catalog.sqlite"
_BESIDE = ("-journal", "-wal", "-shm")
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
"""At the end of a journal that names a super-journal, which a catalog's never does."""
_NOT_DAMAGE = frozenset({"FULL", "READONLY", "BUSY", "LOCKED", "NOMEM", "PERM", "AUTH"})


def folder_aside() -> "TemporaryDirectory[str]":
    """A folder for a catalog aside from the archive's: where SQLite puts its own large files, for /tmp is often memory."""
    import tempfile

    places = (os.environ.get("SQLITE_TMPDIR"), os.environ.get("TMPDIR"), "/var/tmp")  # noqa: S108  # the name in it is random
    where = next((place for place in places if place and os.access(place, os.W_OK | os.X_OK)), None)
    return tempfile.TemporaryDirectory(prefix="sparsebak-", dir=where)


def exists(path: Path) -> bool:
    """Whether there is anything of that name."""
    return os.path.lexists(path)


def usable(path: Path) -> bool:
    """Whether SQLite can be let open this file: a database with a rollback journal, alone, and nothing but files there."""
    if exists(beside(path, "-wal")) or exists(beside(path, "-shm")):
        return False
    try:
        with open(_opened(path), "rb") as file:
            head = file.read(20)
        # 1: read and written with a rollback journal, 2 would be a WAL
        if head[:16] != b"SQLite format 3\0" or head[18:20] != b"\1\1":
            return False
        if exists(beside(path, "-journal")):
            with open(_opened(beside(path, "-journal")), "rb") as file:
                file.seek(-min(file.seek(0, os.SEEK_END), len(_JOURNAL_MAGIC)), os.SEEK_END)
                return file.read() != _JOURNAL_MAGIC
    except OSError:
        return False
    return True


def _opened(path: Path) -> int:
    """Descriptor of a regular file, by no link of either kind; raise OSError. No FIFO keeps it waiting."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(fd)
        raise OSError(f"{path} is not a file of its own")
    return fd


def half_written(path: Path) -> bool:
    """Whether a journal lies beside it, that the next one who writes plays back."""
    try:
        return os.lstat(beside(path, "-journal")).st_size > 0
    except FileNotFoundError:
        return False


def beside(path: Path, suffix: str) -> Path:
    """A file that SQLite keeps beside a database."""
    return path.with_name(path.name + suffix)


def clear(path: Path) -> None:
    """Remove the catalog, whatever it is, and what SQLite would find beside it. Links are removed, not followed."""
    for one in (*(beside(path, suffix) for suffix in _BESIDE), path):
        try:
            if stat.S_ISDIR(os.lstat(one).st_mode):
                shutil.rmtree(one)
            else:
                one.unlink()
        except FileNotFoundError:
            pass


def copy(path: Path, folder: Path) -> Path:
    """Copy a catalog, with what SQLite has beside it, into a folder; returns the copy."""
    for one in (path, beside(path, "-journal")):
        if exists(one):
            with open(_opened(one), "rb") as source, open(folder / one.name, "xb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    return folder / path.name


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the catalog is at fault, so that making it again helps; not a disk that is full or read-only."""
    name = getattr(error, "sqlite_errorname", "") or ""
    return isinstance(error, sqlite3.DatabaseError) and not any(
        name.startswith(f"SQLITE_{one}") for one in _NOT_DAMAGE
    )


def explain(error: sqlite3.Error, place: str) -> SparsebakError:
    """An error of SQLite's as what it is, for people. ``place``: of the catalog."""
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
        return SparsebakError(
            f"{place} cannot be read or written: {error}",
            "check its disk, and whether it is full; nothing stored is lost: it is only a cache",
        )
    return SparsebakError(
        f"{place}: {error}", "nothing stored is lost: remove this file, and it is made again"
    )
