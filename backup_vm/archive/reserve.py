# SPDX-License-Identifier: GPL-2.0-or-later
"""Room that an archive in a folder keeps on its disk: a file ``reserve`` with nothing in it that
anybody reads.

No session can be removed in a safe order where there is not one free block: the catalog's journal
needs some, and so do sessions that take over what others held. So what makes room removes this file
when there is too little, before it does anything else, and makes it again at its end of what is
left. Otherwise whoever writes makes it, where there is plenty. A backup never gets this room: the
next one would fill it, too.

Nothing depends on the file. It is not made where the place tells no free space, and that it cannot
be made is no failure of the run that tried.
"""

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from backup_vm.archive import catalog_file
from backup_vm.errors import DamagedError, ForbiddenError, SparsebakError
from common.durable import closing_fd, pwrite_all

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive
    from backup_vm.archive.storage import Storage, Workspace

NAME = "reserve"
MAKING_ROOM = frozenset({"prune", "delete", "scrub", "upkeep"})
"""Commands that get it. ``scrub`` makes no room, and is wanted where a disk that ran full is
doubted.
"""
_UNIT = 1 << 20
_SHARE = 32
"""The whole disk is at least so many times as large, or ``_UNIT`` is all that is kept."""
_ENOUGH = 4
"""It is made where so many times as much is free: not where it would end the next backup."""


def give_back(storage: "Storage") -> int:
    """Remove it if there is less room without it than it takes; returns its size then, else 0.
    Raises LockedError.
    """
    workspace = storage.workspace
    if storage.elsewhere:
        return 0
    with suppress(OSError, DamagedError, ForbiddenError):
        size, free = workspace.size(NAME), storage.free()
        if free is not None and free >= size:
            refusal = workspace.refusal()  # a quota is in no count of free blocks
            if refusal is None or refusal.errno not in (errno.ENOSPC, errno.EDQUOT):
                return 0
        workspace.remove(NAME)
        return size
    return 0


def take_again(storage: "Storage", size: int) -> None:
    """After ``give_back``: make it again, of as much of that size as there is. How much that is no
    count of free blocks tells, of which some may be for root alone, or beyond a quota.
    """
    for share in (4, 3, 2, 1):
        with suppress(OSError, SparsebakError):
            if not storage.workspace.exists(NAME):
                storage.check()
                _make(storage.workspace, size * share // 4)
            return


def keep(archive: "Archive") -> None:
    """At the end of a run that writes: make it where there is none, and make it larger when the
    archive has grown.
    """
    storage, catalog = archive.storage, archive.open_catalog
    if storage.elsewhere or catalog is None:
        return
    with suppress(OSError, SparsebakError):
        workspace = storage.workspace
        have = workspace.size(NAME) if workspace.exists(NAME) else 0  # DamagedError: none of ours
        if have and not catalog.written:
            return
        if have and storage.allocated(NAME) < have and storage.allocated(catalog_file.NAME):
            have = 0  # a copy of it that another program made, with holes; no room is kept by that
        wanted = _wanted(archive)
        if have >= wanted // 2:
            return
        if catalog.written:
            storage.sync()  # Btrfs counts what was removed as free when that is on disk
        free = storage.free()
        if free is None or free + have < _ENOUGH * wanted:
            return
        storage.check()
        workspace.remove(NAME)
        _make(workspace, wanted)


def _wanted(archive: "Archive") -> int:
    """Bytes that removing sessions may need at once: a journal of the whole catalog, all sessions
    merged into one, and what these refer to beside.
    """
    storage, catalog = archive.storage, archive.catalog
    sessions = sum(size for size in catalog.files().values() if size > 0)
    needed = storage.workspace.size(catalog_file.NAME) + 2 * sessions
    units = 1 + needed // _UNIT
    # What files say of their sizes is the store's word: it never takes much of a disk.
    return min(units, max((storage.capacity() or 0) // _SHARE // _UNIT, 1)) * _UNIT


def _make(workspace: "Workspace", size: int) -> None:
    from backup_vm.archive.storage import libc

    try:
        with closing_fd(workspace.descriptor(NAME, create=True)) as fd:
            with suppress(OSError):
                libc.fallocate(fd, 0, 0, size)
            # Some file systems cannot do that, and some (ZFS) only look whether there is room. Of
            # zeros those that compress would make holes.
            if os.fstat(fd).st_blocks * 512 < size:
                for at in range(0, size, _UNIT):
                    pwrite_all(fd, os.urandom(min(_UNIT, size - at)), at)
    except BaseException:
        with suppress(OSError, SparsebakError):
            workspace.remove(NAME)
        raise
