# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of sessions as folders, by FUSE: ``QUBE/VOLUME/SESSION/...``, for ``mount --files``.

Names and all that is said of files come from the child without rights (``backup_vm.files``), which
one thread asks: it lives as long as the mount, because the child ends with the thread that started
it. Contents are read by whoever wants them.

Nothing changes below the mount, so that the kernel may keep what it was told.
"""

import errno
import os
import sqlite3
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count, islice
from typing import Any, TypeVar

from backup_vm.errors import SparsebakError
from backup_vm.files.answers import NOWHERE, Extents, FileSystemError, Stat
from backup_vm.files.listing import Listing
from backup_vm.files.parser import Parser
from backup_vm.files.session import DEEPEST, PIECE, Found, SessionFiles, joined, shown
from backup_vm.jobs.lazy_image import OpenedImage
from backup_vm.jobs.libfuse import ending, mfusepy
from backup_vm.jobs.mount import Shown

KERNEL = {"use_ino": True, "kernel_cache": True, "entry_timeout": 86_400, "attr_timeout": 86_400}
"""Options of the mount: inodes are ours, and what the kernel was told holds."""
_SESSIONS = 4
"""Sessions that are open at once."""
_ENTRIES = 40_000
"""Entries of folders kept in memory, of each: about 40 MB."""
_EXTENTS = 2_000_000
"""Pieces of files kept in memory: 48 MB. A file of more is not opened."""
_BATCH = 256
_LOOK = 0.25
"""Seconds between looks at whether the mount is to end."""
Result = TypeVar("Result")


@dataclass
class _Session:
    """A session that is open. What is kept of its folders goes by their numbers."""

    files: SessionFiles
    image: OpenedImage
    root: Found
    folders: OrderedDict[int, Listing] = field(default_factory=OrderedDict)
    entries: int = 0

    def folder(self, node: int) -> Listing:
        """A folder's entries: those of the last ones are kept."""
        if node in self.folders:
            self.folders.move_to_end(node)
            return self.folders[node]
        found = self.folders[node] = self.files.names(node)
        self.entries += found.held
        while self.entries > _ENTRIES and len(self.folders) > 1:
            oldest = self.folders.popitem(last=False)[1]
            self.entries -= oldest.held
            oldest.close()
        return found

    def close(self) -> None:
        while self.folders:
            self.folders.popitem()[1].close()
        self.files.close()


@dataclass(frozen=True)
class _Open:
    """A regular file that somebody reads."""

    at: tuple[str, str]
    """Volume and session."""
    found: Found
    extents: Extents
    image: OpenedImage


class FileTree(mfusepy.Operations):  # type: ignore[misc]
    """The file system. What cannot be read goes to ``warn``, and gives an error where it is."""

    use_ns = True

    def __init__(
        self,
        volumes: Mapping[str, Sequence[Shown]],
        partition: int | str | None,
        warn: Callable[[str], None],
    ) -> None:
        self._volumes = {
            name: {session.name: session for session in sessions}
            for name, sessions in volumes.items()
        }
        self._time = max((one.time for some in volumes.values() for one in some), default=0)
        self._partition, self._warn = partition, warn
        self._worker = ThreadPoolExecutor(1)
        self._parser = Parser()
        self._sessions: OrderedDict[tuple[str, str], _Session] = OrderedDict()
        self._open: dict[int, _Open] = {}
        self._handles = count(1)
        self._salt, self._last = os.urandom(16), ("", dict[str, bytes]())
        self._exited: Callable[[], bool] = lambda: False
        self.mounted = False
        """Whether there was a mount."""

    def init(self, path: str) -> None:
        """See fuse(4)."""
        self.mounted, self._exited = True, ending()

    def end(self) -> None:
        """Let nobody wait for the child any more; from any thread."""
        self._parser.abort()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        """See fuse(4)."""
        return self._asked(path, self._about)

    def readdir(self, path: str, fh: int) -> Iterator[str]:
        """See fuse(4); for versions of mfusepy that know no other way."""
        return (name for name, _, _ in self.readdir_with_offset(path, 0, fh))

    def readdir_with_offset(
        self, path: str, offset: int, fh: int
    ) -> Iterator[tuple[str, dict[str, int], int]]:
        """See fuse(4). A few entries at a time, however many there are."""
        while some := self._asked(path, self._some, offset):
            yield from some
            offset = some[-1][2]

    def readlink(self, path: str) -> str:
        """See fuse(4)."""
        return self._asked(path, self._link).decode("utf-8", "surrogateescape")

    def listxattr(self, path: str) -> list[str]:
        """See fuse(4)."""
        return list(self._asked(path, self._attributes))

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        """See fuse(4)."""
        value = self._asked(path, self._attributes).get(name)
        if value is None:
            raise _error(errno.ENODATA)
        return value

    def open(self, path: str, flags: int) -> int:
        """See fuse(4). Asks where the file's contents are."""
        opened, handle = self._asked(path, self._opened), next(self._handles)
        self._open[handle] = opened
        return handle

    def release(self, path: str, fh: int) -> int:
        """See fuse(4)."""
        self._open.pop(fh, None)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """See fuse(4)."""
        opened = self._open[fh]
        end = min(offset + size, opened.found.stat.size)
        if offset >= end:
            return b""
        out = bytearray(end - offset)  # holes are zeros
        for first, length, place in opened.extents.within(offset, end):
            low, high = max(first, offset), min(first + length, end)
            if place == NOWHERE:
                data = self._asked(path, self._unplaced, opened, low, high)
            else:
                data = self._told(path, opened.image.read, place + low - first, high - low)
            out[low - offset : high - offset] = data
        return bytes(out)

    def _asked(self, path: str, ask: Callable[..., Result], *more: object) -> Result:
        """What the one thread finds out of a path that asks the child."""
        found: Result = self._told(path, self._waited_for, ask, path, *more)
        return found

    def _waited_for(self, ask: Callable[..., Result], *more: object) -> Result:
        future: Future[Result] = self._worker.submit(ask, *more)
        while not wait([future], _LOOK).done:
            if self._exited():  # libfuse waits for us, and the child may take a minute
                self.end()
        return future.result()

    def _told(self, path: str, act: Callable[..., Result], *words: object) -> Result:
        try:
            return act(*words)
        except mfusepy.FuseOSError:
            raise
        except (SparsebakError, OSError, sqlite3.Error) as error:
            self._warn(f"{shown(_bytes(path))}: {error}")
        except (CancelledError, RuntimeError):  # the mount ends
            pass
        raise _error(errno.EIO)

    def _parts(self, path: str) -> tuple[tuple[str, str], list[bytes]]:
        """Volume and session of a path below a session, and the names that follow."""
        qube, volume, session, *rest = _bytes(path).strip(b"/").split(b"/")
        return (f"{qube.decode()}/{volume.decode()}", session.decode()), rest

    def _above(self, path: str) -> list[str] | None:
        """What is in a folder above the sessions; None for one below."""
        names = path.strip("/").split("/") if path != "/" else []
        if len(names) > 2:
            at, session = "/".join(names[:2]), names[2]
            if session not in self._volumes.get(at, ()):
                raise _error(errno.ENOENT)
            return None
        if len(names) == 2:
            found = list(self._volumes.get("/".join(names), ()))
        else:
            below = [name.split("/") for name in self._volumes]
            found = [one[len(names)] for one in below if one[: len(names)] == names]
        if not found:
            raise _error(errno.ENOENT)
        return list(dict.fromkeys(found))

    def _session(self, at: tuple[str, str]) -> _Session:
        """A session, opened; the last few stay."""
        if at in self._sessions:
            self._sessions.move_to_end(at)
            return self._sessions[at]
        image = self._volumes[at[0]][at[1]].open()
        title = f"{at[0]} at {at[1]}"
        files = SessionFiles(self._parser, image, title, self._partition)
        for note in files.notes:
            self._warn(f"{title}: {note}")
        root = Found(b"/", files.root, files.stat(files.root))
        self._sessions[at] = _Session(files, image, root)
        while len(self._sessions) > _SESSIONS:
            self._sessions.popitem(last=False)[1].close()
        return self._sessions[at]

    def _found(self, path: str) -> tuple[_Session, Found]:
        """The file of a path below a session. Links lead nowhere here: the kernel follows them."""
        if self._above(path) is not None:
            raise _error(errno.EINVAL)
        at, names = self._parts(path)
        session = self._session(at)
        here, trail = session.root, {session.root.node}
        for name in names:
            if not stat.S_ISDIR(here.stat.mode):
                raise _error(errno.ENOTDIR)
            entry = session.folder(here.node).get(name)
            if entry is None:
                raise _error(errno.ENOENT)
            if entry.stat is None:
                raise FileSystemError(entry.trouble)
            here = Found(joined(here.path, name), entry.node, entry.stat)
            if stat.S_ISDIR(here.stat.mode) and (here.node in trail or len(trail) > DEEPEST):
                raise _error(errno.ELOOP)  # a folder within itself
            trail.add(here.node)
        return session, here

    def _about(self, path: str) -> dict[str, Any]:
        if self._above(path) is not None:
            times = dict.fromkeys(("st_mtime", "st_ctime", "st_atime"), self._time * 10**9)
            about = {"st_mode": stat.S_IFDIR | 0o555, "st_nlink": 2}
            return {**about, **times, "st_ino": self._inode(path)}
        _, found = self._found(path)
        return {**_attributes(found.stat), "st_ino": self._inode(self._parts(path)[0], found.node)}

    def _inode(self, *what: object) -> int:
        """A number for a file, the same for each of its names, that no image can choose; not 0,
        which is none.
        """
        raw = blake2b(repr(what).encode(), key=self._salt, digest_size=8).digest()
        return int.from_bytes(raw) or 1

    def _some(self, path: str, offset: int) -> list[tuple[str, dict[str, int], int]]:
        """A few entries of a folder behind an offset, each with its mode and offset."""
        above = self._above(path)
        names = [".", "..", *(above or [])]
        rows = [
            (name, {"st_mode": stat.S_IFDIR, "st_ino": self._inode(path, name)}, at)
            for at, name in enumerate(names, 1)
        ][offset:]
        if above is not None:
            return rows
        session, found = self._found(path)
        if not stat.S_ISDIR(found.stat.mode):
            raise _error(errno.ENOTDIR)
        at = self._parts(path)[0]
        entries = session.folder(found.node).after(max(offset - len(names), 0))
        for position, entry in islice(entries, _BATCH):
            more = {"st_ino": self._inode(at, entry.node)}
            if entry.stat is not None:
                more["st_mode"] = entry.stat.mode
            rows.append(
                (entry.name.decode("utf-8", "surrogateescape"), more, position + len(names))
            )
        return rows

    def _attributes(self, path: str) -> dict[str, bytes]:
        if self._above(path) is not None:
            return {}
        if self._last[0] != path:  # of a file, one after another is asked for
            session, found = self._found(path)
            self._last = (path, session.files.attributes(found.node))
        return self._last[1]

    def _link(self, path: str) -> bytes:
        session, found = self._found(path)
        if not stat.S_ISLNK(found.stat.mode):
            raise _error(errno.EINVAL)
        return session.files.link(found.node)

    def _opened(self, path: str) -> _Open:
        session, found = self._found(path)
        if not stat.S_ISREG(found.stat.mode):
            raise _error(errno.EINVAL)
        extents = session.files.extents(found)
        if len(extents) + sum(len(one.extents) for one in list(self._open.values())) > _EXTENTS:
            raise FileSystemError("files in too many pieces are open")
        return _Open(self._parts(path)[0], found, extents, session.image)

    def _unplaced(self, path: str, opened: _Open, low: int, high: int) -> bytes:
        files, node = self._session(opened.at).files, opened.found.node
        return b"".join(
            files.unplaced(node, at, min(high - at, PIECE)) for at in range(low, high, PIECE)
        )


def _error(number: int) -> OSError:
    error: OSError = mfusepy.FuseOSError(number)
    return error


def _bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _attributes(about: Stat) -> dict[str, Any]:
    found = {"st_mode": about.mode, "st_nlink": about.links, "st_size": about.size}
    found |= {"st_uid": about.uid, "st_gid": about.gid, "st_blocks": -(-about.size // 512)}
    found |= {"st_atime": about.atime, "st_mtime": about.mtime, "st_ctime": about.ctime}
    if stat.S_ISCHR(about.mode) or stat.S_ISBLK(about.mode):
        found["st_rdev"] = os.makedev(about.major & 0xFFF, about.minor & 0xFFFFF)
    return found
