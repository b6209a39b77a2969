# SPDX-License-Identifier: GPL-2.0-or-later
"""What commands that read an archive note in it: when it was checked, or a restore from it
rehearsed, and where it was copied to.

What they were asked for they have done by then, also on a disk that is read-only or full, or with a
key that may only read. So each of these returns why nothing could be noted, and None where it was:
whoever called it says so, or it would look as if the archive knew.
"""

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from backup_vm.archive.catalog_file import where_there_is_room
from backup_vm.archive.notes import NAME, Check, Notes, change, place_of, short
from backup_vm.archive.storage import Storage
from backup_vm.errors import DamagedError, SparsebakError

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive


def checked(storage: Storage, sound: bool, session: bytes) -> str | None:
    """Note that a session was verified."""
    check = Check(int(time.time()), sound)
    return _note(storage, lambda notes: notes.verified.update({session.hex(): check}))


def drilled(storage: Storage, sound: bool, volume: str, session: bytes) -> str | None:
    """Note a drill of a session of a volume (id in hexadecimal)."""
    check = Check(int(time.time()), sound)

    def note(notes: Notes) -> None:
        notes.drilled[session.hex()] = check
        notes.drills[volume] = check

    return _note(storage, note)


def scrubbed(
    storage: Storage,
    sound: bool,
    looked_at: Iterable[str],
    there: Iterable[str],
    damaged: Iterable[str] = (),
    rotten: Iterable[str] = (),
) -> str | None:
    """Note that packs were looked at, of those that there are, which files were damaged, and which
    packs are known to have places that are ``rotten``.

    A part is no better than what is known of the rest: damage counts until a scrub of its pack
    finds none.
    """
    present, done = {short(pack) for pack in there}, {short(pack) for pack in looked_at}
    bad, now = done & {short(file) for file in damaged}, int(time.time())

    def note(notes: Notes) -> None:
        note_scrub(notes, sound, present, done, bad, now)
        notes.rotten = {short(pack) for pack in rotten}

    return _note(storage, note)


def note_rotten(storage: Storage, packs: Iterable[str]) -> str | None:
    """Note more packs that have places that are rotten."""
    return _note(storage, lambda notes: notes.rotten.update(map(short, packs)))


def changed(archive: "Archive", action: Callable[[Notes], None]) -> None:
    """For a writer: change the notes, and remember that there are none newer. Raises as
    ``notes.change``.
    """
    after = change(archive.storage, action)
    if after.changes is not None:
        with where_there_is_room():
            archive.catalog.marks.noted_changes = after.changes


def look_back(archive: "Archive", found: Notes) -> DamagedError | None:
    """For a writer that has read the notes: what to raise, once, before sessions go by rules, where
    the notes are older ones than this machine has seen. They may lack tags, and know less of what
    is damaged: what the catalog knows of that is noted again, and counts as damaged until a scrub
    finds it is not.

    Checks that were noted since are gone, so that nothing looks as if it was checked later than it
    was.
    """
    marks = archive.catalog.marks
    if found.changes is None or not archive.writing:
        return None
    seen = marks.noted_changes
    with where_there_is_room():
        marks.noted_changes = found.changes
    if found.changes >= seen:
        return None
    rotten = {short(pack) for pack, _ in archive.catalog.rotten()}

    def note(notes: Notes) -> None:
        notes.rotten |= rotten
        notes.unsound |= rotten

    if rotten:
        _note(archive.storage, note)
    error = DamagedError(
        f"{archive.storage.describe(NAME)} is an older one than it was: tags and checks noted since"
        " are not in it",
        "put the newest back from a copy; or tag again, and repeat the command",
    )
    archive.warnings.append(str(error))
    return error


def note_scrub(
    notes: Notes, sound: bool, present: set[str], done: set[str], bad: set[str], now: int
) -> None:
    """What ``scrubbed`` notes; packs by ``short``."""
    notes.packs = {pack: at for pack, at in notes.packs.items() if pack in present}
    notes.packs.update(dict.fromkeys(done, now))
    # So that it is known how long one has been waiting that is never reached: names are random,
    # and a file's own time is another one after a copy or a hole.
    notes.seen = {pack: notes.seen.get(pack, now) for pack in present - notes.packs.keys()}
    notes.unsound = bad | (notes.unsound & present - done)
    if done == present:
        notes.scrubbed = Check(now, sound)
    else:
        notes.part = Check(now, sound and not notes.unsound)


def remember_copy(storage: Storage, location: str) -> str | None:
    """Note that there is a copy at a location."""
    return _note(storage, lambda notes: notes.copies.add(place_of(location)))


def line(reason: str) -> str:
    """What to say of a check that could not be noted."""
    return (
        f"this check could not be noted in the archive ({reason}): status and doctor go by what was"
        " noted before"
    )


def _note(storage: Storage, action: Callable[[Notes], None]) -> str | None:
    if not storage.writable():
        return f"{storage.describe()} cannot be written to"
    try:
        change(storage, action)
    except OSError as error:
        return f"{storage.describe(NAME)} cannot be written: {error.strerror or error}"
    except SparsebakError as error:
        storage.check()  # a lease that is lost ends the whole run
        return str(error)
    return None
