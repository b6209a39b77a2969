# SPDX-License-Identifier: GPL-2.0-or-later
"""Indexes of names, as whoever stores an archive knows them: sealed files beside sessions, which
can be handed on, copied, checked and removed without a key.

An index is a chain of segments. The last one leads to the names of the file's own session; each
says what is different from the segment that it builds on, which is the one before it in the file,
or for the first one the last of another file, or none. When a session is removed, the files that
build on its index get its segments (``hand_on``).

Nothing needs an index: one that is missing or damaged means that a session's files are read.
"""

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from backup_vm.archive import digested, naming
from backup_vm.archive.damage import opened
from backup_vm.archive.format import DIGEST_SIZE
from backup_vm.archive.names_format import (
    BLOCK_LENGTH,
    HEAD_SIZE,
    LONGEST_BLOCK,
    SEAL_OVERHEAD,
    SEGMENT_SIZE,
    NamesHead,
    SegmentHead,
)
from backup_vm.archive.sessions import SUFFIX as SESSION
from backup_vm.archive.storage import UNSEEN, Storage
from backup_vm.errors import DamagedError, UnreadableError

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive

SUFFIX = ".names"
HINT = "run: sparsebak files index"
NO_SEGMENT = bytes(16)
"""``base`` of a segment that builds on none."""
MOST_SEGMENTS = 1 << 12
"""Segments of one file."""
_LENGTH = BLOCK_LENGTH.size


class Segment(NamedTuple):
    """A segment in a file; ``at`` is the offset of its head."""

    file: str
    at: int
    head: SegmentHead


class NameFile(NamedTuple):
    """An index in a file, as its heads say; nothing of it has proven authentic."""

    name: str
    segments: tuple[Segment, ...]

    @property
    def id(self) -> bytes:
        """Id of its last segment, which others may build on."""
        return self.segments[-1].head.id

    @property
    def base(self) -> bytes:
        """Id of the segment in another file that it builds on."""
        return self.segments[0].head.base


def of_session(session_file: str) -> str:
    """The name of the index of a session, given that of its session file."""
    return session_file.removesuffix(SESSION) + SUFFIX


def names_in(storage: Storage, volume: str | None = None) -> list[str]:
    """Names of all indexes, of one volume or all."""
    found = filter(naming.is_names, storage.names("volumes", SUFFIX))
    return [name for name in found if volume in (None, naming.volume_of(name))]


def sizes(storage: Storage) -> dict[str, int]:
    """Bytes of each index, by name; of what is no regular file none."""
    found = storage.sizes("volumes").items()
    return {name: size for name, size in found if naming.is_names(name) and size >= 0}


def load(storage: Storage, name: str, archive: bytes) -> NameFile:
    """The heads of an index; raise DamagedError."""
    path, found = storage.describe(name), list[Segment]()
    with opened(storage, name) as fd:
        end = os.fstat(fd).st_size - DIGEST_SIZE
        try:
            head = NamesHead.parse(os.pread(fd, HEAD_SIZE, 0))
            if (head.archive, head.volume_id.hex()) != (archive, naming.volume_of(name)):
                raise ValueError("it is of another archive or volume")
            if not 1 <= head.segments <= MOST_SEGMENTS:
                raise ValueError("it has an impossible number of segments")
            at = HEAD_SIZE
            for _ in range(head.segments):
                segment = SegmentHead.parse(os.pread(fd, SEGMENT_SIZE, at))
                if segment.payload > end - at - SEGMENT_SIZE or not segment.blocks:
                    raise ValueError("a segment is longer than the file")
                if found and segment.base != found[-1].head.id:
                    raise ValueError("its segments do not build on each other")
                found.append(Segment(name, at, segment))
                at += SEGMENT_SIZE + segment.payload
            if at != end or found[-1].head.session.hex() != naming.session_of(name):
                raise ValueError("it is of another length or session")
        except ValueError as error:
            raise DamagedError(f"{path} is damaged: {error}", HINT) from None
    return NameFile(name, tuple(found))


def load_all(storage: Storage, volume: str, archive: bytes) -> Iterator[NameFile | DamagedError]:
    """All indexes of a volume, without those that another machine removes meanwhile."""
    return _load_each(storage, names_in(storage, volume), archive)


def _load_each(
    storage: Storage, names: list[str], archive: bytes
) -> Iterator[NameFile | DamagedError]:
    with suppress(FileNotFoundError):
        storage.fetch(names)
    for name in names:
        try:
            yield load(storage, name, archive)
        except DamagedError as error:
            if storage.exists(name):
                yield error


def sealed_blocks(storage: Storage, segment: Segment) -> Iterator[bytes]:
    """The sealed blocks of a segment; raise DamagedError where they are not what its head says."""
    at = segment.at + SEGMENT_SIZE
    end = at + segment.head.payload
    with opened(storage, segment.file) as fd:
        for _ in range(segment.head.blocks):
            raw = os.pread(fd, _LENGTH, at)
            (length,) = BLOCK_LENGTH.unpack(raw) if len(raw) == _LENGTH else (0,)
            at += _LENGTH
            if not SEAL_OVERHEAD <= length <= min(LONGEST_BLOCK, end - at):
                raise _damaged(storage, segment)
            sealed = os.pread(fd, length, at)
            if len(sealed) != length:
                raise _damaged(storage, segment)
            yield sealed
            at += length
    if at != end:
        raise _damaged(storage, segment)


def _damaged(storage: Storage, segment: Segment) -> DamagedError:
    return DamagedError(f"{storage.describe(segment.file)} is damaged: its blocks", HINT)


def check(storage: Storage, name: str) -> None:
    """Compare a file with its digest; raise DamagedError."""
    with opened(storage, name) as fd:
        sound = digested.sound(fd)
    if not sound:
        raise DamagedError(f"{storage.describe(name)} is damaged: its checksum is wrong", HINT)


def write(
    storage: Storage, archive: bytes, name: str, parts: Iterable[bytes], segments: int
) -> None:
    """Store an index of so many segments; ``parts`` are the bytes of all of them."""
    head = NamesHead(archive, bytes.fromhex(naming.volume_of(name)), segments).build()
    digested.write(storage, name, chain([head], parts))


def raw_segments(storage: Storage, segments: Iterable[Segment]) -> Iterator[bytes]:
    """The bytes of segments, to be written into another file; raise DamagedError."""
    for segment in segments:
        with opened(storage, segment.file) as fd:
            end = segment.at + SEGMENT_SIZE + segment.head.payload
            yield from digested.between(fd, segment.at, end)


def hand_on(archive: "Archive", volume: str, gone: Collection[str]) -> None:
    """Before sessions (file names) of a volume are removed: give the segments of their indexes to
    those that build on them.

    What goes wrong costs an index, and keeps no session from being removed: on a full disk a prune
    has to make room.
    """
    storage, own = archive.storage, archive.parameters.archive
    lost = {of_session(name) for name in gone}
    if lost.isdisjoint(names_in(storage, volume)):
        return
    found = [one for one in load_all(storage, volume, own) if isinstance(one, NameFile)]
    going = {one.id: one for one in found if one.name in lost}
    for one in found:
        if one.name in lost or one.base not in going:
            continue
        segments = inherited(one, going)
        if len(segments) > MOST_SEGMENTS:
            continue
        with suppress(DamagedError, OSError):
            for name in {segment.file for segment in segments}:
                check(storage, name)  # no damage is stored under a good digest
            write(storage, own, one.name, raw_segments(storage, segments), len(segments))


def inherited(one: NameFile, others: dict[bytes, NameFile]) -> list[Segment]:
    """The segments of an index after those of ``others`` (by the id of their last one) that it
    builds on, at whatever remove.
    """
    segments, left = list(one.segments), dict(others)
    while (before := left.pop(segments[0].head.base, None)) is not None:
        segments = [*before.segments, *segments]
    return segments


def clean(archive: "Archive") -> None:
    """Remove indexes of which there is no session: those of sessions that were removed. What is no
    regular file stays, for it is none of ours, and is named by scrub.
    """
    sessions = set(map(of_session, archive.session_files()))
    archive.storage.remove_all([one for one in sizes(archive.storage) if one not in sessions])


def copy(source: "Archive", target: "Archive") -> Iterator[str]:
    """Give a copy the indexes that it lacks, of the sessions that it has; yields what is damaged
    here, or cannot be listed. What another machine moves meanwhile is left to the next copy.
    """
    own = source.parameters.archive
    ours, theirs = (one.storage.names("volumes", "") for one in (source, target))
    for archive, listed in ((source, ours), (target, theirs)):
        for name in listed:
            if name.endswith(UNSEEN):
                folder = archive.storage.describe(name.rpartition("/")[0])
                yield f"{folder} cannot be read: indexes of names were not copied"
    wanted = set(map(of_session, filter(naming.is_session, theirs)))
    indexes = list(filter(naming.is_names, ours))
    lacking = wanted.intersection(indexes).difference(theirs)
    for volume in sorted(set(map(naming.volume_of, lacking))):
        mine = [name for name in indexes if naming.volume_of(name) == volume]
        loaded = list(_load_each(source.storage, mine, own))
        yield from (str(one) for one in loaded if isinstance(one, DamagedError))
        found = [one for one in loaded if isinstance(one, NameFile)]
        here = {one.id: one for one in found}
        for there in load_all(target.storage, volume, own):
            if isinstance(there, NameFile):
                here.pop(there.id, None)
        for one in (one for one in found if one.name in lacking):
            try:
                if _send(source, target, one, here):
                    here.pop(one.id, None)
            except DamagedError as error:
                yield str(error)


def _send(source: "Archive", target: "Archive", one: NameFile, here: dict[bytes, NameFile]) -> bool:
    """Give a copy one index, with what it inherits of those that are only ``here``; whether it has
    it now. Raise DamagedError, unless another machine moved it meanwhile.
    """
    own, segments = source.parameters.archive, inherited(one, here)
    try:
        for name in {segment.file for segment in segments}:
            check(source.storage, name)
        parts = raw_segments(source.storage, segments)
        write(target.storage, own, one.name, parts, len(segments))
    except DamagedError:
        source.storage.refresh()
        if _there(source.storage, own, segments):
            raise
        return False
    try:
        whole = _there(source.storage, own, segments)
    except DamagedError:
        target.storage.remove(one.name)
        raise
    if not whole:  # some of it was read elsewhere
        target.storage.remove(one.name)
    return whole


def _there(storage: Storage, archive: bytes, segments: list[Segment]) -> bool:
    """Whether segments are where they were: another machine may have handed them on. Raise
    UnreadableError where nobody can tell.
    """
    try:
        now = [load(storage, name, archive) for name in {one.file for one in segments}]
    except UnreadableError:
        raise
    except DamagedError:
        return False
    return {one for file in now for one in file.segments}.issuperset(segments)
