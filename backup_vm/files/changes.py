# SPDX-License-Identifier: GPL-2.0-or-later
"""Which files changed from one session to another, and in which sessions one file did.

Chunks that are the same have the same id. So what is in the same chunks at the same places is
the same, and is not read.
"""

import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from backup_vm.archive.image import Image
from backup_vm.errors import DamagedError
from backup_vm.files.answers import NOWHERE, FileSystemError
from backup_vm.files.session import PIECE, Found, MissingError, SessionFiles, found_in, shown

_SAME = ("mode", "uid", "gid", "size", "mtime", "ctime")


class Change(NamedTuple):
    """A file that is not what it was. ``what`` is ``+``, ``-``, ``M`` (contents) or ``m`` (what
    else is said of it).
    """

    what: str
    path: bytes
    old: Found | None
    new: Found | None


class Side:
    """The files of one session, and the ids of its chunks."""

    def __init__(self, files: SessionFiles, image: Image) -> None:
        self.files, self.image = files, image
        self.chunk = image.session.clear.chunk_size
        self._ids: dict[int, bytes] = {}

    def id(self, number: int) -> bytes:
        """A chunk's id; those around it are read with it."""
        page = number >> 10
        if page not in self._ids:
            first = page << 10
            ids = self.image.ids(first, min(first + 1024, self.image.chunks))
            self._ids[page] = ids.tobytes()
        at = (number & 1023) * 32
        return self._ids[page][at : at + 32]


def same_contents(old: Side, one: Found, new: Side, other: Found) -> bool:
    """Whether two regular files have the same bytes; only what may differ is read."""
    if one.stat.size != other.stat.size:
        return False
    parts, others = list(old.files.extents(one)), list(new.files.extents(other))
    if parts == others and all(place != NOWHERE for _, _, place in parts):
        return all(
            old.files.read(at, step) == new.files.read(at, step)
            for _, length, place in parts
            for at, step in _different(old, new, place, length)
        )
    return _flat(old.files.contents(one), new.files.contents(other))


def _different(old: Side, new: Side, place: int, length: int) -> Iterator[tuple[int, int]]:
    """Pieces of a range of both images, those in chunks whose ids differ."""
    at, end = place, place + length
    while at < end:
        number = at // old.chunk
        step = min((number + 1) * old.chunk, end) - at
        if old.id(number) != new.id(number):
            yield at, step
        at += step


def _flat(old: Iterator[tuple[int, bytes]], new: Iterator[tuple[int, bytes]]) -> bool:
    """Whether two files of the same size have the same bytes, holes being zeros."""
    left, right = _Pieces(old), _Pieces(new)
    while left.more() and right.more():
        if left.at != right.at:  # one has a hole where the other has bytes
            behind, until = (left, right.at) if left.at < right.at else (right, left.at)
            if behind.take(until - behind.at).strip(b"\0"):
                return False
            continue
        step = min(len(left.data), len(right.data))
        if left.take(step) != right.take(step):
            return False
    rest = left if left.more() else right
    while rest.more():
        if rest.take(PIECE).strip(b"\0"):
            return False
    return True


class _Pieces:
    """Pieces of a file, to be taken in parts."""

    def __init__(self, pieces: Iterator[tuple[int, bytes]]) -> None:
        self._pieces, self.at, self.data = pieces, 0, b""

    def more(self) -> bool:
        while not self.data:
            piece = next(self._pieces, None)
            if piece is None:
                return False
            self.at, self.data = piece
        return True

    def take(self, count: int) -> bytes:
        """At most so many bytes, of one piece."""
        taken, self.data = self.data[:count], self.data[count:]
        self.at += len(taken)
        return taken


def compared(old: Side, one: Found, new: Side, other: Found, contents: bool) -> str:
    """How a file changed: ``M``, ``m``, or nothing.

    Where all that is said of a file is the same, to the time that it was changed at, which nobody
    can set back, its contents are compared only if ``contents``.
    """
    said = all(getattr(one.stat, name) == getattr(other.stat, name) for name in _SAME)
    said = said and (one.stat.major, one.stat.minor) == (other.stat.major, other.stat.minor)
    if said and one.node == other.node and not contents:
        return ""
    if stat.S_IFMT(one.stat.mode) != stat.S_IFMT(other.stat.mode):
        return "M"
    if stat.S_ISREG(one.stat.mode) and not same_contents(old, one, new, other):
        return "M"
    if stat.S_ISLNK(one.stat.mode) and old.files.link(one.node) != new.files.link(other.node):
        return "M"
    if stat.S_ISDIR(one.stat.mode):  # its times and size are those of what is in it
        said = (one.stat.mode, one.stat.uid, one.stat.gid) == (
            other.stat.mode,
            other.stat.uid,
            other.stat.gid,
        )
    return "" if said else "m"


Trouble = Callable[[bytes, str], None]
"""Told of what cannot be read: its path, and why."""


def differences(
    old: Side, new: Side, path: bytes, trouble: Trouble, contents: bool = False
) -> Iterator[Change]:
    """What changed in a folder and below it, by path. What cannot be read is reported.

    ``contents``: see ``compared``.
    """
    before, after = _find(old, path), _find(new, path)
    if before is None and after is None:
        raise MissingError(f"neither session has {shown(path)}")
    yield from _Walk(old, new, trouble, contents).differences(before, after)


class _Walk:
    """A walk through a folder of two sessions at once."""

    def __init__(self, old: Side, new: Side, trouble: Trouble, contents: bool) -> None:
        self._old, self._new, self._trouble, self._contents = old, new, trouble, contents
        self._seen: set[tuple[int, int]] = set()
        """Inodes of folders that were compared: a damaged file system may have one in itself."""

    def differences(self, before: Found | None, after: Found | None) -> Iterator[Change]:
        """Of a file or folder, and of all below it; at least one of the two is there."""
        pairs = [(before, after)]
        while pairs:  # a stack, and no recursion: folders may be nested deeper than Python can call
            was, now = pairs.pop()
            if was and now:
                if what := self._changed(was, now):
                    yield Change(what, now.path, was, now)
                if stat.S_ISDIR(was.stat.mode) and stat.S_ISDIR(now.stat.mode):
                    folders: list[tuple[Found | None, Found | None]] = []
                    yield from self._in_folder(was, now, folders)
                    pairs.extend(reversed(folders))
                    continue
                # One of them may be a folder, all of which is gone or new.
                yield from _all_below(self._old, was, "-", self._trouble)
                yield from _all_below(self._new, now, "+", self._trouble)
            elif was:
                yield from self._one_side(was, "-")
            elif now:
                yield from self._one_side(now, "+")

    def _in_folder(
        self, was: Found, now: Found, folders: list[tuple[Found | None, Found | None]]
    ) -> Iterator[Change]:
        """Of what is in a folder of both, by name. Folders of one name come to ``folders``, for
        later.
        """
        if (was.node, now.node) in self._seen:
            self._trouble(now.path, "this folder is in several places")
            return
        self._seen.add((was.node, now.node))
        had, has = _named(self._old, was, self._trouble), _named(self._new, now, self._trouble)
        if had is None or has is None:  # nothing can be said of what is in it
            return
        for one, other in _together(had, has):
            if one and other:
                if stat.S_ISDIR(one.stat.mode) or stat.S_ISDIR(other.stat.mode):
                    folders.append((one, other))
                elif what := self._changed(one, other):
                    yield Change(what, other.path, one, other)
            elif one:
                yield from self._one_side(one, "-")
            elif other:
                yield from self._one_side(other, "+")

    def _one_side(self, found: Found, what: str) -> Iterator[Change]:
        """Of what is in one session only, and all below it."""
        gone = what == "-"
        yield Change(what, found.path, *((found, None) if gone else (None, found)))
        yield from _all_below(self._old if gone else self._new, found, what, self._trouble)

    def _changed(self, was: Found, now: Found) -> str:
        """See ``compared``; nothing where it cannot be told, which is reported."""
        try:
            return compared(self._old, was, self._new, now, self._contents)
        except (FileSystemError, DamagedError) as error:
            _tell(error, now.path, self._new, self._trouble)
            return ""


def _find(side: Side, path: bytes) -> Found | None:
    try:
        return side.files.find(path)
    except MissingError:
        return None


def _tell(error: Exception, path: bytes, side: Side, trouble: Trouble) -> None:
    side.files.damaged = side.files.damaged or isinstance(error, DamagedError)
    trouble(path, str(error))


def _named(side: Side, folder: Found, trouble: Trouble) -> Iterator[Found] | None:
    """What is in a folder, by name; None where that cannot be read, which is reported."""
    try:
        entries = side.files.names(folder.node)
    except (FileSystemError, DamagedError) as error:
        _tell(error, folder.path, side, trouble)
        return None

    return found_in(folder, entries, trouble)


def _together(
    old: Iterator[Found], new: Iterator[Found]
) -> Iterator[tuple[Found | None, Found | None]]:
    """Those of both with one path together, in order."""
    one, other = next(old, None), next(new, None)
    while one or other:
        if one and (not other or one.path < other.path):
            yield one, None
            one = next(old, None)
        elif other and (not one or other.path < one.path):
            yield None, other
            other = next(new, None)
        else:
            yield one, other
            one, other = next(old, None), next(new, None)


def _all_below(side: Side, top: Found, what: str, trouble: Trouble) -> Iterator[Change]:
    if stat.S_ISDIR(top.stat.mode):
        for _, found in side.files.walk(top, trouble):
            yield Change(what, found.path, *((found, None) if what == "-" else (None, found)))


class Version(NamedTuple):
    """A file from the session on in which it became what it is; None where it is not there."""

    session: str
    what: str
    found: Found | None


class History:
    """One path, session after session, the oldest first."""

    def __init__(self, path: bytes) -> None:
        self._path = path
        self._side: Side | None = None
        self._found: Found | None = None
        self._asked: set[int] = set()
        """Chunks that told where the file is, and what of it."""

    def untouched(self, image: Image) -> bool:
        """Whether nothing that tells of the file is different in this image from the last one
        that was looked into, nor the file: then it need not be opened.
        """
        old = self._side
        if old is None or old.image.chunks != image.chunks:
            return False
        new = Side(old.files, image)
        numbers = set(self._asked)
        if self._found is not None and stat.S_ISREG(self._found.stat.mode):
            for _, length, place in old.files.extents(self._found):
                if place != NOWHERE:
                    first, last = place // old.chunk, (place + length - 1) // old.chunk
                    numbers.update(range(first, last + 1))
        return all(old.id(number) == new.id(number) for number in sorted(numbers))

    def next(self, side: Side) -> tuple[str, Found | None]:
        """How the file changed up to this session: a letter of Change, or nothing; and what it is
        there. From here on later sessions are compared with this one.
        """
        old, one = self._side, self._found
        try:
            found: Found | None = side.files.find(self._path)
        except MissingError:
            found = None
        what = ""
        if one is not None and found is not None and old is not None:
            what = compared(old, one, side, found, False)
        elif one is not None:
            what = "-"
        elif found is not None:
            what = "+"
        if found is not None and stat.S_ISREG(found.stat.mode):
            for offset, length, place in side.files.extents(found):
                if place == NOWHERE:  # what is unpacked has its chunks noted, too
                    side.files.unplaced(found.node, offset, min(length, PIECE))
        if old is not None:
            old.files.close()
        self._side, self._found = side, found
        self._asked = set(side.files.fetched or ())
        return what, found
