# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding files in all sessions of a volume: by their indexes of names, and by reading the sessions
that have none.
"""

import re
import stat
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

from backup_vm.archive.sessions import Session
from backup_vm.errors import DamagedError, RemovedError, SparsebakError
from backup_vm.files.answers import FileSystemError
from backup_vm.files.names import About, found_path
from backup_vm.files.session import MissingError, SessionFiles
from backup_vm.jobs.indexing import Names, Step, Wanted, must_be_few

Trouble = Callable[[bytes, str], None]


class Version(NamedTuple):
    """A file as it was from one session to another: in so many ``sessions`` of those that were
    looked through.
    """

    path: bytes
    about: About
    first: Session
    last: Session
    sessions: int


@dataclass
class Looked:
    """How it was looked: in how many sessions by reading, and in how many not at all."""

    read: int = 0
    unread: int = 0
    incomplete: int = 0
    """Sessions of whose files some could not be read when their names were indexed."""
    damaged: bool = False
    gone: list[str] = field(default_factory=list)
    """What is to be said of sessions that another machine removed meanwhile."""


def plain(path: bytes) -> bytes:
    """A path without ``.`` and ``..``, as far as names alone tell."""
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/" + b"/".join(parts)


def wanted(top: bytes, name: bytes | None, kind: int | None) -> Wanted:
    """What is below a folder (a plain path), of this name (a pattern as of a shell) and type (of
    st_mode).
    """
    folder = top.strip(b"/")

    def fits(path: bytes) -> bool:
        below = not folder or path.startswith(folder + b"/")
        return below and (name is None or fnmatchcase(path.rpartition(b"/")[2], name))

    def kept(about: About) -> bool:
        return kind is None or stat.S_IFMT(about.mode) == kind

    return Wanted(between_zeros(name), fits, kept)


def between_zeros(name: bytes | None) -> re.Pattern[bytes]:
    """What finds all names that a pattern of a shell fits, and maybe others, between two zeros."""
    parts = re.split(rb"[*?\[]", b"*" if name is None else name)
    # behind a bracket nothing is certain
    middle = max(parts[1:-1], key=len, default=b"") if name and b"[" not in name else b""
    last = parts[-1] if len(parts) > 1 and name and b"[" not in name else b""
    if name is not None and len(parts) == 1:
        return re.compile(rb"(?<=\0)" + re.escape(name) + rb"(?=\0)")
    inner = rb"[^\0]*" + re.escape(middle) + rb"[^\0]*" if middle else rb"[^\0]*"
    return re.compile(
        rb"(?<=\0)(?=[^\0])" + re.escape(parts[0]) + inner + re.escape(last) + rb"(?=\0)"
    )


def find(
    sessions: Sequence[Session],
    names: Names,
    wanted: Wanted,
    top: bytes,
    opened: Callable[[Session], SessionFiles],
    trouble: Callable[[Session], Trouble],
) -> tuple[list[Version], Looked]:
    """The versions of all files that are wanted, by path and time. ``opened`` is asked for the
    files of a session that has no index; what cannot be read is told.
    """
    found, looked, state = _Versions(), Looked(), dict[bytes, About]()
    for session, step in names.steps(sessions, wanted):
        if step is None:
            read = _read(session, wanted, top, opened, trouble(session), looked)
            if read is None:
                continue
            touched, state = state.keys() | read.keys(), read
        else:
            looked.incomplete += step.troubles > 0
            now = {} if step.anew else state
            touched = step.rows.keys() | (state.keys() if step.anew else ())
            for path, about in step.rows.items():
                if about is None:
                    now.pop(path, None)
                else:
                    now[path] = about
            must_be_few(now)
            state = now
        found.next(session, touched, state)
    return found.all(), looked


def _read(
    session: Session,
    wanted: Wanted,
    top: bytes,
    opened: Callable[[Session], SessionFiles],
    trouble: Trouble,
    looked: Looked,
) -> dict[bytes, About] | None:
    """What fits in a session, by reading it; None where that cannot be done."""
    rows = dict[bytes, About]()
    try:
        files = opened(session)
    except RemovedError as error:
        looked.gone.append(str(error))
        return None
    except DamagedError as error:
        looked.unread, looked.damaged = looked.unread + 1, True
        trouble(b"/", str(error))
        return None
    except SparsebakError as error:
        looked.unread += 1
        trouble(b"/", str(error))
        return None
    looked.read += 1
    try:
        start = files.find(top, follow=False)
        if stat.S_ISDIR(start.stat.mode):
            for _, one in files.walk(start, trouble):
                about = About.of(one)
                if wanted.fits(one.path[1:]) and wanted.kept(about):
                    rows[one.path[1:]] = about
                    must_be_few(rows)
    except MissingError:
        pass
    except (FileSystemError, DamagedError) as error:
        looked.damaged = looked.damaged or isinstance(error, DamagedError)
        trouble(top, str(error))
    finally:
        looked.damaged = looked.damaged or files.damaged
        files.close()
    return rows


class _Versions:
    """Files through sessions, one after another."""

    def __init__(self) -> None:
        self._open: dict[bytes, tuple[About, Session, int]] = {}
        self._closed: list[Version] = []
        self._last: Session | None = None
        self._number = 0

    def next(self, session: Session, touched: Collection[bytes], state: dict[bytes, About]) -> None:
        """The next session: of the paths that may be others, what they are."""
        for path in touched:
            was, now = self._open.get(path), state.get(path)
            if was is not None and now is not None and _alike(was[0], now):
                continue
            self._close(path)
            if now is not None:
                self._open[path] = (now, session, self._number)
        must_be_few(self._closed)
        self._last, self._number = session, self._number + 1

    def _close(self, path: bytes) -> None:
        if (was := self._open.pop(path, None)) is not None and self._last is not None:
            about, first, number = was
            self._closed.append(
                Version(found_path(path), about, first, self._last, self._number - number)
            )

    def all(self) -> list[Version]:
        """There is no session any more."""
        for path in list(self._open):
            self._close(path)
        key = lambda one: (one.path.replace(b"/", b"\0"), one.first.clear.sequence)  # noqa: E731
        return sorted(self._closed, key=key)


def _alike(one: About, other: About) -> bool:
    """Whether a file is the same to whoever looks for it: a folder is one whatever is in it."""
    if stat.S_ISDIR(one.mode) and stat.S_ISDIR(other.mode):
        return (one.mode, one.uid, one.gid) == (other.mode, other.uid, other.gid)
    return (one.mode, *one[2:8]) == (other.mode, *other[2:8])


class Place:
    """A path, looked up in one session after another by their indexes, where symbolic links are not
    followed: what leads over one is not known.
    """

    def __init__(self, path: bytes) -> None:
        parts = [part for part in path.split(b"/") if part not in (b"", b".")]
        self._paths = [b"/".join(parts[: end + 1]) for end in range(len(parts))]
        self._sure = b".." not in parts and bool(parts)
        names = b"|".join(map(re.escape, sorted(set(parts))))
        self.wanted = Wanted(
            re.compile(rb"(?<=\0)(?:" + names + rb")(?=\0)"),
            frozenset(self._paths).__contains__,
            lambda about: True,
        )
        self._state: dict[bytes, About] = {}

    def at(self, step: Step | None) -> About | bool | None:
        """What the next session has there; False for nothing, None where that is not known."""
        if step is None or not self._sure:
            return None
        now = {} if step.anew else self._state
        for path, about in step.rows.items():
            if about is None:
                now.pop(path, None)
            else:
                now[path] = about
        self._state = now
        for path in self._paths:
            about = now.get(path)
            if about is None:
                return None if step.troubles else False
            if stat.S_ISLNK(about.mode):
                return None
            if path != self._paths[-1] and not stat.S_ISDIR(about.mode):
                return False
        return about


def unchanged(one: About | bool | None, other: About | bool | None) -> bool:
    """Whether it is known that nothing at a path is another in one session than in another one, as
    far as ``history`` tells.
    """
    if isinstance(one, About) and isinstance(other, About):
        if stat.S_ISDIR(one.mode) and stat.S_ISDIR(other.mode):
            return _alike(one, other)
        return one._replace(links=0) == other._replace(links=0)
    return one is False and other is False
