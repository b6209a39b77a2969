# SPDX-License-Identifier: GPL-2.0-or-later
"""A volume's sessions as a folder of raw image files, by FUSE. Nothing is read before somebody
reads it.

By mfusepy: one module over libfuse, which needs no compiler and no trio, and takes 17 MB where
pyfuse3 takes 30. Neither is slow: opening a chunk costs a hundred times what either adds.
"""

import errno
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from backup_vm.archive.archive import Archive
from backup_vm.archive.packs import PackReader
from backup_vm.archive.sessions import Session
from backup_vm.errors import SparsebakError
from backup_vm.jobs.distant_image import DistantImage
from backup_vm.jobs.lazy_image import ChunkCache, LazyImage, OpenedImage
from backup_vm.jobs.libfuse import mfusepy
from backup_vm.unsealing import AnyKeys
from backup_vm.volumes import IMAGE_SUFFIX, Named
from wire.grants import Grant
from wire.records import Record


@dataclass(frozen=True)
class Shown:
    """A session as a file: its size in bytes, its time in Unix seconds, and what opens and proves
    it when somebody wants it.
    """

    name: str
    size: int
    time: int
    open: Callable[[], OpenedImage]


def shown_sessions(
    archive: Archive,
    volume: Named,
    sessions: list[Session],
    keys: AnyKeys,
    reader: PackReader,
    cache: ChunkCache | None = None,
) -> list[Shown]:
    """Sessions of an archive that is open, with the key. ``reader`` and ``cache`` are for all of
    them.
    """
    archive.catalog.count()  # opened, and rebuilt if need be, before the first thread comes
    kept = cache or ChunkCache()

    def opening(session: Session) -> Callable[[], OpenedImage]:
        return lambda: LazyImage(
            archive, archive.image(volume.series, session), keys, volume.name, kept, reader
        )

    return [Shown(one.name, one.clear.size, one.clear.time, opening(one)) for one in sessions]


def shown_from(qube: str, grant: Grant, records: Sequence[Record] | None = None) -> list[Shown]:
    """The sessions of a grant, or some of them, whose sealed chunks come from a backup VM."""
    cache, names = ChunkCache(), grant.names

    def opening(record: Record) -> Callable[[], OpenedImage]:
        return lambda: DistantImage(qube, grant, record, cache)

    return [
        Shown(names[one.session], one.size, one.time, opening(one))
        for one in sorted(records or grant.records, key=lambda one: one.sequence)
    ]


class SessionImages(mfusepy.Operations):  # type: ignore[misc]
    """The file system. A session whose image is damaged is there, and gives an error where it is
    read.
    """

    use_ns = True

    def __init__(self, sessions: list[Shown], warn: Callable[[str], None]) -> None:
        self._warn, self._time = warn, max(session.time for session in sessions)
        self._sessions = {session.name + IMAGE_SUFFIX: session for session in sessions}
        self._images: dict[str, OpenedImage] = {}
        self._lock = threading.Lock()
        self.mounted = False
        """Whether there was a mount."""

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        """See fuse(4)."""
        if path == "/":
            times = dict.fromkeys(("st_mtime", "st_ctime", "st_atime"), self._time * 10**9)
            return {"st_mode": stat.S_IFDIR | 0o555, "st_nlink": 2, **times}
        session = self._session(path)
        times = dict.fromkeys(("st_mtime", "st_ctime", "st_atime"), session.time * 10**9)
        return {
            "st_mode": stat.S_IFREG | 0o444,
            "st_nlink": 1,
            "st_size": session.size,
            **times,
        }

    def readdir(self, path: str, fh: int) -> Iterator[str]:
        """See fuse(4)."""
        yield from (".", "..", *self._sessions)

    def open(self, path: str, flags: int) -> int:
        """See fuse(4). Proves the image's record and chunk ids."""
        self._image(path)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """See fuse(4)."""
        try:
            return self._image(path).read(offset, size)
        except (SparsebakError, OSError, sqlite3.Error) as error:
            self._warn(str(error))
            raise mfusepy.FuseOSError(errno.EIO) from None

    def end(self) -> None:
        """Nothing is waited for that would have to be cut short."""

    def init(self, path: str) -> None:
        """See fuse(4)."""
        self.mounted = True

    def _session(self, path: str) -> Shown:
        try:
            return self._sessions[path.removeprefix("/")]
        except KeyError:
            raise mfusepy.FuseOSError(errno.ENOENT) from None

    def _image(self, path: str) -> OpenedImage:
        session = self._session(path)
        if path in self._images:
            return self._images[path]  # not waiting for another one to be proven
        with self._lock:
            if path not in self._images:
                try:
                    self._images[path] = session.open()
                except (SparsebakError, OSError, sqlite3.Error) as error:
                    self._warn(str(error))
                    raise mfusepy.FuseOSError(errno.EIO) from None
            return self._images[path]
