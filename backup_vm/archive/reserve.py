# SPDX-License-Identifier: GPL-2.0-or-later
"""Room that an archive in a folder keeps on its disk: a file ``reserve`` with nothing in it that
anybody reads.

No session can be removed in a safe order where there is not one free block: the catalog's journal
needs some, and so do sessions that take over what others held. So what makes room empties this file
when there is too little, before it does anything else, and fills it again at its end of what is
left. Otherwise whoever writes makes it, where there is plenty. A backup never gets this room: the
next one would fill it, too.

A file that is emptied keeps its size, which says what is owed: whoever writes after a run that died
in between fills it again before anything else, unless that makes room, too.

Nothing depends on the file. It is not made where the place tells no free space, and that it cannot
be made is no failure of the run that tried.
"""

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from backup_vm import failures
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
_SHARES = 8
"""Where there is not as much as there was it is made of so many parts of that at most."""
_ENOUGH = 4
"""It is made where so many times as much is free: not where it would end the next backup."""


def give_back(storage: "Storage") -> int:
    """Empty it if there is less room without it than it takes; returns its size if it is empty
    then, else 0. Raises LockedError.
    """
    if storage.elsewhere:
        return 0
    workspace, size = storage.workspace, owed(storage)
    if size:
        return size
    with suppress(OSError, DamagedError, ForbiddenError):
        size, free = workspace.size(NAME), storage.free()
        if free is not None and free >= size:
            refusal = workspace.refusal()  # a quota is in no count of free blocks
            if refusal is None or not failures.no_room(refusal):
                return 0
        if not _emptied(storage, size):
            workspace.remove(NAME)
        return size
    return 0


def owed(storage: "Storage") -> int:
    """Bytes that it is to be filled with again, because a run died that had emptied it; else 0."""
    if not storage.elsewhere:
        with suppress(OSError, SparsebakError):
            size = storage.workspace.size(NAME)
            if not size or _hollow(storage, size):
                return min(max(size, _UNIT), _most(storage))
    return 0


def take_again(storage: "Storage", size: int) -> None:
    """Make it again, of as much of that size as there is. How much that is no count of free blocks
    tells, of which some may be for root alone, or beyond a quota.
    """
    for share in range(_SHARES, 0, -1):
        with suppress(OSError, SparsebakError):
            storage.check()
            if storage.workspace.exists(NAME) and not owed(storage):
                return
            _make(storage.workspace, size * share // _SHARES, size)
            return


def keep(archive: "Archive", made_room: bool) -> None:
    """At the end of a run that writes: make it where there is none, and make it larger when the
    archive has grown. A run that ``made_room`` makes it also where there is little.
    """
    storage, catalog = archive.storage, archive.open_catalog
    if storage.elsewhere or catalog is None:
        return
    with suppress(OSError, SparsebakError):
        workspace = storage.workspace
        there = workspace.exists(NAME)
        have = workspace.size(NAME) if there else 0  # DamagedError: none of ours
        if have and not catalog.written:
            return
        if have and _hollow(storage, have):
            have = 0
        wanted = _wanted(archive)
        if have >= wanted // 2:
            return
        if catalog.written:
            storage.sync()  # Btrfs counts what was removed as free when that is on disk
        free = storage.free()
        if free is None:
            return
        if free + have < _ENOUGH * wanted:
            wanted = min(wanted, free // 2)
            if there or not made_room or not wanted:  # what is owed is made after this
                return
        storage.check()
        _make(workspace, wanted)


def _wanted(archive: "Archive") -> int:
    """Bytes that removing sessions may need at once: a journal of the whole catalog, all sessions
    merged into one, and what these refer to beside.
    """
    storage, catalog = archive.storage, archive.catalog
    sessions = sum(size for size in catalog.files().values() if size > 0)
    needed = storage.workspace.size(catalog_file.NAME) + 2 * sessions
    return min((1 + needed // _UNIT) * _UNIT, _most(storage))


def _most(storage: "Storage") -> int:
    """What files say of their sizes is the store's word: it never takes much of a disk."""
    return max((storage.capacity() or 0) // _SHARE // _UNIT, 1) * _UNIT


def _hollow(storage: "Storage", size: int) -> bool:
    """Whether it takes no room: one that was emptied, or a copy of another program's, with holes.
    Some places tell of no file what it takes.
    """
    return storage.allocated(NAME) < size and storage.allocated(catalog_file.NAME) > 0


def _emptied(storage: "Storage", size: int) -> bool:
    """Give its room back, and keep its size; whether that could be done."""
    with suppress(OSError):
        return storage.punch(NAME, [(0, size)]) and storage.allocated(NAME) < size
    return False


def _make(workspace: "Workspace", size: int, owed: int = 0) -> None:
    """Make it, durably: a run that begins after a power cut must not take what is kept. Where there
    is no room it is gone, or stays empty where so many bytes are ``owed``.
    """
    from backup_vm.archive.storage import libc

    with closing_fd(workspace.descriptor(NAME, create=True)) as fd:
        if os.fstat(fd).st_nlink > 1:  # never written to: it is somebody's elsewhere
            workspace.remove(NAME)
            raise FileExistsError
        try:
            os.ftruncate(fd, 0)
            with suppress(OSError):
                libc.fallocate(fd, 0, 0, size)
            # Some file systems cannot do that, and some (ZFS) only look whether there is room. Of
            # zeros those that compress would make holes.
            if os.fstat(fd).st_blocks * 512 < size:
                for at in range(0, size, _UNIT):
                    pwrite_all(fd, os.urandom(min(_UNIT, size - at)), at)
            os.fsync(fd)
        except BaseException:
            with suppress(OSError, SparsebakError):
                if owed:
                    os.ftruncate(fd, 0)
                    os.ftruncate(fd, owed)
                else:
                    workspace.remove(NAME)
            raise
