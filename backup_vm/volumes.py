# SPDX-License-Identifier: GPL-2.0-or-later
"""Which volume is which: in a sealed archive names are known to dom0 and to whoever has the key,
and to nobody else.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from backup_vm.archive import noting
from backup_vm.archive.archive import Archive
from backup_vm.archive.naming import session_of, sessions_in, volume_of
from backup_vm.archive.notes import Notes
from backup_vm.archive.notes import load as load_notes
from backup_vm.archive.sessions import Session
from backup_vm.errors import DamagedError, SparsebakError, UsageError, WrongKeyError
from backup_vm.unsealing import AnyKeys, unseal
from common.text import session_name
from wire.chunks import NotAuthentic
from wire.grants import Grant
from wire.names import BadName, parse_name, parse_volume_name, set_aside

if TYPE_CHECKING:
    from backup_vm.archive.image import Image


IMAGE_SUFFIX = ".img"
"""What a session's name ends with where it is shown as an image file."""
_NAMED = 4


class Named(NamedTuple):
    """A volume of the archive. Without dom0 and without the key, ``qube`` is empty and ``volume``
    the volume's id.
    """

    qube: str
    volume: str
    id: str
    sessions: tuple[Session, ...]
    notes: Notes
    notes_damaged: DamagedError | None = None
    closed: tuple[Session, ...] = ()
    """Sessions that the grant in use is not for: nobody sees them, but images build on them."""
    newer: DamagedError | None = None
    """Why a session that is newer than all of these cannot be read, where there is one."""

    @property
    def name(self) -> str:
        """``qube/volume``, or the volume's id."""
        return f"{self.qube}/{self.volume}" if self.qube else self.volume

    @property
    def series(self) -> list[Session]:
        """All its sessions, in order, for those that build on each other."""
        if not self.closed:
            return list(self.sessions)
        return sorted([*self.sessions, *self.closed], key=lambda one: one.clear.sequence)

    def notes_must_be_sound(self) -> None:
        """Raise DamagedError if tags could not be read: something may be meant to be kept."""
        if self.notes_damaged is not None:
            raise self.notes_damaged


def stored_volumes(
    archive: Archive, keys: AnyKeys | None, known: dict[str, tuple[str, str]]
) -> list[Named]:
    """The volumes that have sessions, by name. ``known``: qube and volume by id, as dom0 tells
    them.
    """
    found = []
    notes, damaged = Notes(), None
    try:
        notes = load_notes(archive.storage)
        damaged = noting.look_back(archive, notes)
    except DamagedError as error:
        damaged = error
        archive.warnings.append(str(error))
    for volume_id, series in archive.sessions().items():
        qube, volume = known.get(volume_id) or _from_records(series, keys) or ("", volume_id)
        named = Named(qube, volume, volume_id, tuple(series), notes, damaged)
        chosen = [named] if not isinstance(keys, Grant) else _granted(named, keys)
        found += [one._replace(newer=_newer(archive, one, keys)) for one in chosen]
    return sorted(_told_apart(found, known), key=lambda named: (named.qube, named.volume))


def _newer(archive: Archive, volume: Named, keys: AnyKeys | None) -> DamagedError | None:
    """Why the newest session of a volume cannot be read; None where it can be. What has the id of
    one that can be read is no other session, whichever number its name claims.
    """
    last, here = volume.sessions[-1].file, {one.clear.session.hex() for one in volume.series}
    damaged = [name for name in archive.damaged if volume_of(name) == volume.id]
    damaged = [name for name in damaged if session_of(name) not in here]
    if isinstance(keys, Grant):
        wanted = {record.session.hex() for record in keys.records}
        damaged = [name for name in damaged if session_of(name) in wanted]
    return archive.damaged.get(sessions_in([last, *damaged])[-1])


def _granted(volume: Named, grant: Grant) -> list[Named]:
    """The volume with those sessions alone that a grant is for; nothing where it is for none."""
    wanted = {record.session for record in grant.records}
    seen = tuple(one for one in volume.sessions if one.clear.session in wanted)
    closed = tuple(one for one in volume.sessions if one.clear.session not in wanted)
    ours = volume.id == grant.volume_id.hex()
    return [volume._replace(sessions=seen, closed=closed)] if ours and seen else []


def _told_apart(found: list[Named], known: Collection[str]) -> Iterator[Named]:
    """The volumes, no two with one name: of a qube that was made again under its name the new one
    has it, or whichever dom0 says.
    """
    names = set[tuple[str, str]]()
    for one in sorted(found, key=lambda one: (one.id not in known, -_newest(one))):
        if one.qube and (one.qube, one.volume) in names:
            taken = {qube for qube, volume in names if volume == one.volume}
            one = one._replace(qube=set_aside(one.qube, taken))
        names.add((one.qube, one.volume))
        yield one


def _newest(volume: Named) -> int:
    """Time of its newest session; 0 where there is none."""
    return max((session.clear.time for session in volume.sessions[-1:]), default=0)


def _from_records(series: list[Session], keys: AnyKeys | None) -> tuple[str, str] | None:
    """What the newest record that is authentic says: one that is not takes no name from the
    others.
    """
    if keys is None:
        return None
    for session in reversed(series):
        with suppress(NotAuthentic):
            record, _ = unseal(session.record, keys)
            return record.qube, record.volume
    return None


def matches(name: str, qube: str, volume: str) -> bool:
    """Whether ``QUBE`` or ``QUBE/VOLUME`` means this volume; raise UsageError for a name that
    nothing can have.
    """
    try:
        if "/" in name:
            return parse_volume_name(name) == (qube, volume)
        return parse_name(name, "qube") == qube
    except BadName as error:
        raise UsageError(str(error)) from None


def needed(keys: AnyKeys | None) -> AnyKeys:
    """The keys; raise WrongKeyError where there are none."""
    if keys is None:
        raise WrongKeyError(
            "the archive is sealed",
            "give its passphrase or recovery key with --passphrase-file F",
        )
    return keys


class Contents(NamedTuple):
    """An archive that is open, its keys if they are here, and its volumes as far as their names are
    known.
    """

    archive: Archive
    keys: AnyKeys | None
    volumes: list[Named]

    def needed_keys(self) -> AnyKeys:
        """The keys; raise WrongKeyError where the archive is sealed and none were given."""
        return needed(self.keys)

    def one(self, name: str) -> Named:
        """The one volume a name stands for; raise SparsebakError."""
        found = self.select(name)
        if len(found) > 1:
            names = ", ".join(volume.name for volume in found)
            raise UsageError(f"{name} has several volumes: {names}", "name one of them")
        return found[0]

    def lost(self, id: str) -> Named | None:
        """A volume, by its id, that has sessions of which none can be read; None if it is none."""
        known = any(one.id == id for one in self.volumes)
        there = any(volume_of(file) == id for file in self.archive.damaged)
        return Named("", id, id, (), Notes()) if there and not known else None

    def select(self, *names: str | None) -> list[Named]:
        """The volumes that ``QUBE``, ``QUBE/VOLUME`` or a volume id stand for; all where there is
        no name, or only None. Raise SparsebakError, also for an empty name, as of a variable that
        a script forgot to set: it must not stand for all.
        """
        wanted = [name for name in names if name is not None]
        if not wanted:
            return self.volumes
        chosen: list[Named] = []
        for name in wanted:
            found = [
                volume
                for volume in self.volumes
                if matches(name, volume.qube, volume.volume) or volume.id == name
            ]
            if not found:
                raise self._no_volume(name)
            chosen += [volume for volume in found if volume not in chosen]
        return chosen

    def _no_volume(self, name: str) -> SparsebakError:
        """What is wrong with a name that stands for none of the volumes."""
        if self._grant is not None:
            granted = ", ".join(volume.name for volume in self.volumes)
            return WrongKeyError(f"the grant is not for {name}", f"it is for {granted}")
        hint = "see: sparsebak list"
        if any(not volume.qube for volume in self.volumes):
            hint = (
                "names are sealed: give --passphrase-file or --agent, or name a volume by its id"
                " from: sparsebak list"
            )
        return SparsebakError(f"there is no volume {name} in the archive", hint)

    @property
    def _grant(self) -> Grant | None:
        return self.keys if isinstance(self.keys, Grant) else None

    def not_there(self) -> list[str]:
        """The sessions that the grant is for and that the archive has not, or not whole."""
        if self._grant is None:
            return []
        here = {one.clear.session for volume in self.volumes for one in volume.sessions}
        lacking = [one for one in self._grant.records if one.session not in here]
        return [f"{one.name} {session_name(one.time)}" for one in lacking]

    def unread(self, volume: Named) -> list[str]:
        """A line for each session file of a volume that cannot be read."""
        found = sorted(self.archive.damaged.items())
        return [str(error) for file, error in found if volume_of(file) == volume.id]

    def find(self, volume: Named, wanted: str) -> Session:
        """See find_session. Raises DamagedError also where the latest is known to be lost."""
        session = find_session(volume, wanted)
        if wanted == "latest" and self._grant is None:
            lost = self.archive.lost_newest(volume.id)
            if lost is not None:
                raise _not_latest(volume, lost)
        return session

    def now(self) -> "Contents":
        """These contents, with the sessions that are there now."""
        told = {one.id: (one.qube, one.volume) for one in self.volumes if one.qube}
        return self._replace(volumes=stored_volumes(self.archive, self.keys, told))

    def image(self, volume: Named, session: Session) -> "Image":
        """The volume as it was at one of its sessions; raise DamagedError."""
        return self.archive.image(volume.series, session)

    def spoilt(self, chosen: Iterable[tuple[Named, Session]]) -> list[str]:
        """A line for each volume of which one of the sessions chosen is known not to be whole."""
        from backup_vm.archive.incomplete import incomplete, text

        by_volume: dict[str, tuple[Named, list[Session]]] = {}
        for volume, session in chosen:
            by_volume.setdefault(volume.id, (volume, []))[1].append(session)
        series = {id: volume.series for id, (volume, _) in by_volume.items()}
        found = incomplete(self.archive, series)
        return [line for one, mine in by_volume.values() for line in text(one.name, mine, found)]


class Chosen(NamedTuple):
    """One session of one volume, and where it is."""

    contents: Contents
    volume: Named
    session: Session

    @property
    def archive(self) -> Archive:
        """The archive it is in, open."""
        return self.contents.archive

    def image(self) -> "Image":
        """The volume as it was; raise DamagedError."""
        return self.contents.image(self.volume, self.session)

    def data(self) -> dict[str, Any]:
        """What it is, as --json prints it."""
        return {
            "qube": self.volume.qube,
            "volume": self.volume.volume,
            "session": self.session.name,
        }


def _not_latest(volume: Named, why: str) -> DamagedError:
    return DamagedError(
        f"the newest session of {volume.name} cannot be had: {why}",
        f"to have the one before it, name it: --session {volume.sessions[-1].name}",
    )


def find_session(volume: Named, wanted: str) -> Session:
    """A session by its time (or the beginning of it, if that is enough), by a tag (the newest that
    has it), or ``latest``. Raises DamagedError where that cannot be read: an older one is not what
    was asked for.
    """
    if wanted == "latest":
        if volume.newer is not None:
            raise _not_latest(volume, str(volume.newer))
        return volume.sessions[-1]
    found = [session for session in volume.sessions if session.name == wanted]
    if not found:
        of = volume.notes.of
        found = [one for one in volume.sessions if wanted in of(one.clear.session).tags][-1:]
    if not found:
        found = [
            one
            for one in volume.sessions
            if one.name.startswith(wanted) or one.clear.session.hex() == wanted
        ]
    if not found and any(wanted in (s.name, s.clear.session.hex()) for s in volume.closed):
        raise WrongKeyError(
            f"the grant is not for session {wanted} of {volume.name}",
            f"it is for {', '.join(session.name for session in volume.sessions)}",
        )
    if not found:
        raise SparsebakError(
            f"{volume.name} has no session {wanted}", f"see: sparsebak list {volume.name}"
        )
    if len(found) > 1:
        names = ", ".join(one.name for one in found[:_NAMED])
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise SparsebakError(
            f"{wanted} could be {len(found)} sessions of {volume.name}",
            f"give a whole name: {names}{more}",
        )
    return found[0]
