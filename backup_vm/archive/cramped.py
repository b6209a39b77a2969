# SPDX-License-Identifier: GPL-2.0-or-later
"""Making room on a disk that has none, nor what an archive keeps for that (reserve.py): one that
somebody else filled up after a run died, or of an archive that never had any to keep.

The catalog is only a cache, and on another disk as good: it is copied to one, its room in the
archive's folder is used by what has to be written there, and it is put back at the end. A run that
dies meanwhile leaves none, and the next one makes it again.
"""

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from backup_vm import failures
from backup_vm.archive import catalog_file
from backup_vm.archive.catalog import ChunkCatalog
from backup_vm.archive.remembered import end_replacing
from backup_vm.archive.storage.beneath import file_system
from backup_vm.archive.storage.workspace import scratch_name
from backup_vm.errors import DamagedError, ForbiddenError, SparsebakError
from common.durable import closing_fd, sync_directory, sync_file
from common.existing import exists

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive
    from backup_vm.archive.storage import Storage

_LEAST = 1 << 18
"""Bytes for what is written beside a journal of the catalog."""
_PLENTY = 4
"""Where so many times as much is free there is room, unless a quota says otherwise."""
_WORTH_ON_BTRFS = 1 << 20
"""Bytes of a catalog from which on it is moved there: what is removed gives back little that the
next step can be written to, and with 64 KiB nothing was gained, with 2 MiB all of it worked.
"""


def cramped(storage: "Storage") -> bool:
    """Whether there is no room for a prune to begin, and none that was kept."""
    from backup_vm.archive.storage import libc

    workspace = storage.workspace
    try:
        size = workspace.size(catalog_file.NAME) if workspace.exists(catalog_file.NAME) else 0
        free, wanted = storage.free(), size + _LEAST
        if size < _WORTH_ON_BTRFS and _on_btrfs(workspace.describe()):
            return False
        if free is not None and free < _PLENTY * wanted:
            storage.sync()  # what was just given back is there then
            # Tried, for no count tells: some blocks are for root alone.
            with workspace.scratch() as file:
                libc.fallocate(file.fileno(), 0, 0, wanted)
    except OSError as error:
        if failures.no_room(error):
            return True
    except (DamagedError, ForbiddenError):  # what reads it says so
        return False
    refusal = workspace.refusal()  # a quota is in no count, and fallocate is not everywhere
    return refusal is not None and failures.no_room(refusal)


def _on_btrfs(folder: str) -> bool:
    with closing_fd(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        return file_system(fd) == "btrfs"


def move_catalog(archive: "Archive") -> None:
    """Move the catalog aside; nothing happens where there is no other disk with room for it."""
    workspace = archive.storage.workspace
    try:
        folder = catalog_file.folder_aside()
    except OSError:  # that disk is as full
        return
    try:
        end_replacing(archive)  # what a rebuild left is the catalog then
        workspace.database(catalog_file.NAME)  # DamagedError: SQLite must not see it, here or there
        path = catalog_file.copy(workspace, Path(folder.name))
        archive.storage.check()
        if exists(path):
            workspace.discard(catalog_file.NAME)
            archive.storage.sync()  # some file systems give its room to nobody before
    except BaseException as error:
        folder.cleanup()
        if isinstance(error, OSError | DamagedError):
            return
        raise
    archive.temporary, archive.cramped = folder, True


def _half_written(path: Path) -> bool:
    """Whether a journal is beside it that nobody has played back."""
    journal = path.with_name(path.name + catalog_file.JOURNAL)
    return exists(journal) and journal.stat().st_size > 0


def put_back(archive: "Archive") -> None:
    """At the end: put it back. Where there is still no room for it, the next run makes it again."""
    import shutil  # 2 ms, for the programs that unpack archives

    workspace = archive.storage.workspace
    catalog, there = archive.open_catalog, archive.moved(catalog_file.NAME)
    archive.cramped, archive.open_catalog = False, None
    # Of no name under which one that is half written would be believed after a power cut: some file
    # systems know its size before they have its contents.
    half = scratch_name()
    if catalog is not None:
        there = catalog.path
        catalog.close()
    elif there is None or _half_written(there):
        return
    try:
        archive.storage.check()
        archive.storage.sync()  # what was removed is free then
        with closing_fd(workspace.descriptor(half, create=True)) as fd:
            with open(there, "rb") as source, open(fd, "wb", closefd=False) as target:
                shutil.copyfileobj(source, target, 1 << 20)
            sync_file(fd)
        path = workspace.database(catalog_file.NAME)
        os.replace(workspace.database(half), path)
        sync_directory(path.parent)
        archive.open_catalog = ChunkCatalog(path, alone=True)
    except (OSError, SparsebakError, sqlite3.Error):
        with suppress(OSError, SparsebakError):
            workspace.discard(half)
