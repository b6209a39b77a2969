# SPDX-License-Identifier: GPL-2.0-or-later
"""Opening an archive and leaving it: what comes before and after all that a run does with it."""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from backup_vm import stopping
from backup_vm.archive import holding, naming, reconcile, reserve
from backup_vm.archive.archive import Archive
from backup_vm.archive.catalog_file import GATHERED, where_there_is_room
from backup_vm.archive.lease import Lease
from backup_vm.archive.listing import Listing
from backup_vm.archive.marks import Marks
from backup_vm.archive.parameters import NAME, Parameters
from backup_vm.archive.parameters import load as load_parameters
from backup_vm.archive.storage import Storage, is_remote, open_storage
from backup_vm.errors import DamagedError, ForbiddenError, NoRoomError, SparsebakError
from common.existing import is_file

_REMOVING = reserve.MAKING_ROOM - {"scrub"}
"""Commands that do make room: scrub reads all and makes none."""
_REFUSALS = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


@contextmanager
def open_archive(
    location: str | Path, writing: bool | None, command: str = ""
) -> Iterator[Archive]:
    """Open and lock the archive in a directory or at a URL: alone for writing, together with other
    readers otherwise.

    ``writing``: None for what notes its findings where it can, and reads all the same where not.
    ``command`` is shown to others who want to write meanwhile. Raises LockedError, also later,
    when a lease is lost.
    """
    storage = open_storage(location)
    with closing(storage), ExitStack() as locked:
        parameters = load_parameters(storage)
        storage.archive = parameters.archive
        if writing is None:
            lease, alone = _locked_if_writable(storage, command, locked)
        else:
            lease, alone = locked.enter_context(_locked(storage, writing, command)), writing
        archive = Archive(storage, parameters, alone)
        archive.warnings += _taken_over(storage, lease)
        try:
            _begin(archive, command, aside=writing is None)
            yield archive
            _end(archive, command)
        except DamagedError:
            # A writer that has lost its lease reads what another run moves: that is no damage.
            storage.check()
            raise
        finally:
            _put_catalog_back(archive)
            archive.close()


def _locked_if_writable(
    storage: Storage, command: str, locked: ExitStack
) -> tuple[Lease | None, bool]:
    """Lock it alone where it can be written to, else together with other readers; whether alone.

    What permissions and mounts tell is not all: a key may only read, a server may refuse, and a
    kernel may have stopped writing to a disk that it still shows as writable.
    """
    if storage.writable():
        try:
            return locked.enter_context(_locked(storage, True, command)), True
        except (ForbiddenError, NoRoomError):
            pass
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
    return locked.enter_context(_locked(storage, False, command)), False


def _begin(archive: Archive, command: str, aside: bool) -> None:
    """What comes before a run. ``aside``: a reader notes what it finds in a copy of the catalog."""
    if archive.writing:
        _recover(archive, command)
        return
    holding.attach(archive)
    if aside:
        _work_aside(archive)


def _end(archive: Archive, command: str) -> None:
    """What comes after a run that has done its work."""
    if archive.found or archive.damaged:
        archive.storage.check()
    holding.extend(archive)
    _record(archive)
    _put_catalog_back(archive)
    if archive.writing:
        reserve.keep(archive, command in _REMOVING)


@contextmanager
def _locked(storage: Storage, writing: bool, command: str) -> Iterator[Lease | None]:
    """Keep others away: by flock, and with a lease those whom flock does not reach."""
    fd = storage.workspace.lock(shared=not writing)
    try:
        if not writing:
            yield None
            return
        makes_room = command in reserve.MAKING_ROOM
        lease = Lease.acquire(storage.locks(), storage.describe(), command, makes_room=makes_room)
        storage.check = lease.check
        given = 0
        try:
            if makes_room:
                given = reserve.give_back(storage)
            elif owed := reserve.owed(storage):
                reserve.take_again(storage, owed)
            lease.check()  # there may be room for it now
            lease.keep()
            storage.refresh()  # what was seen before may be from the middle of another run
            yield lease
        finally:
            if given:
                reserve.take_again(storage, given)
            with stopping.closing():
                lease.release()
    finally:
        if fd is not None:
            os.close(fd)


def _taken_over(storage: Storage, lease: Lease | None) -> list[str]:
    """What to say when another run's lease was taken over because of its age."""
    return [
        f"the lease of another run ({holder}) was not renewed for half an hour and is taken over;"
        f" should that run still be there, it writes nothing more to {storage.describe()}"
        for holder in (lease.taken_over if lease else ())
    ]


def _recover(archive: Archive, command: str) -> None:
    """When writing begins: finish what a run that died left half done."""
    archive.storage.clean()
    if command in _REMOVING and not archive.storage.elsewhere:
        _move_catalog(archive)
    now = Listing.of(archive.storage)
    stored = {naming.session_of(name) for name in now.files if naming.is_session(name)}
    left = [n for n in now.files if not naming.is_session(n) and naming.session_of(n) in stored]
    if left:
        archive.storage.workspace.remove(*filter(naming.is_partial, left))
        with suppress(ForbiddenError):  # whoever may only add leaves it to whoever may remove
            archive.storage.remove(*filter(naming.is_unfinished, left))
        now = Listing.of(archive.storage)
    catalog = archive.open_catalog = reconcile.open_catalog(archive, now)
    holding.begin(archive)
    if archive.storage.workspace.exists(GATHERED):  # of a rebuild that another run ended
        archive.storage.workspace.discard(GATHERED)
    _miss_notes(archive, catalog.marks)
    if catalog.marks.reclaiming:
        from backup_vm.archive.reclaim import reclaim

        reclaim(archive)


def _move_catalog(archive: Archive) -> None:
    from backup_vm.archive import cramped  # by few runs

    if cramped.cramped(archive.storage):
        cramped.move_catalog(archive)


def _put_catalog_back(archive: Archive) -> None:
    if archive.cramped:
        from backup_vm.archive import cramped

        cramped.put_back(archive)


def _miss_notes(archive: Archive, marks: Marks) -> None:
    """Say once that the notes are gone: without them no session seems to have a tag."""
    there = archive.storage.exists(naming.NOTES_FILE)
    if marks.noted and not there:
        archive.warnings.append(
            f"{archive.storage.describe(naming.NOTES_FILE)} is missing, and with it all tags and"
            " notes; put it back from a copy of the archive before anything is pruned"
        )
    with where_there_is_room():
        marks.noted = there


def _work_aside(archive: Archive) -> None:
    """Where the archive cannot be written to: note what is found in a copy of the catalog, which
    goes at the end.
    """
    archive.open_catalog = archive.looking.catalog(aside=True)


def _record(archive: Archive) -> None:
    """At the end of a run: the catalog is made for the files that there are now.

    A run that stored few sessions and nothing else need not wait for the disk: the next one looks
    through these.
    """
    catalog = archive.open_catalog
    if catalog is None or not archive.writing:
        return
    if not catalog.written and archive.unrecorded <= reconcile.UNRECORDED:
        return
    listing, then = Listing.of(archive.storage), catalog.files()
    now, seen = listing.files, listing.seen(listing.files)
    # What is damaged keeps the size that it had when it was whole, so that it is noticed again.
    now |= {name: size for name, size in then.items() if name in archive.damaged and name in now}
    if now != then or seen != catalog.seen():
        catalog.begin()
        catalog.set_files(now, seen)
        catalog.commit()


def create_archive(location: str | Path, parameters: Parameters) -> bool:
    """Make an empty archive in a directory, made if missing, or at a URL; raise SparsebakError
    where there is one. Returns whether the place makes a file only where there is none of its name,
    so that it is certain at once which of several runs was first.
    """
    storage = open_storage(location)
    _none_yet(storage)
    _require_outside_others(location)
    storage.prepare()
    if parameters.retention:
        holding.require(storage, parameters.retention)
    lease = Lease.acquire(storage.locks(), storage.describe(), "init")
    try:
        storage.refresh()
        _none_yet(storage)  # another machine's, made meanwhile
        parameters.save(storage)
    finally:
        with stopping.closing():
            lease.release()
    return lease.conditional


def archive_around(place: str | Path) -> tuple[Path, str] | None:
    """The folder and the label of the archive that a folder or file is in, also as a name that is
    not there yet; None where it is in none.
    """
    for folder in Path(os.path.realpath(place)).parents:
        if not is_file(folder / NAME):
            continue
        try:
            with closing(open_storage(folder)) as storage:
                return folder, load_parameters(storage).label
        except (SparsebakError, OSError):
            continue  # somebody's file of that name
    return None


def _require_outside_others(location: str | Path) -> None:
    """Raise SparsebakError for a folder of another archive: what is there is lost with it, and is
    in the way of what keeps that one.
    """
    around = None if is_remote(location) else archive_around(location)
    if around is not None:
        folder, label = around
        raise SparsebakError(
            f"{location} is in the archive {folder} ({label}), and would be lost with it",
            "name another place",
        )


def _none_yet(storage: Storage) -> None:
    if storage.exists(NAME):
        raise SparsebakError(
            f"there is an archive in {storage.describe()} already", "choose an empty folder"
        )
