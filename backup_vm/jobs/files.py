# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of a volume's sessions: images are read lazily, and one child parses all of them."""

from typing import TYPE_CHECKING

from backup_vm.archive.packs import PackReader
from backup_vm.archive.sessions import Session
from backup_vm.files.changes import Change, History, Side, Version
from backup_vm.files.parser import Parser
from backup_vm.files.session import SessionFiles
from backup_vm.jobs.lazy_image import ChunkCache, LazyImage
from backup_vm.volumes import Contents, Named

if TYPE_CHECKING:
    from collections.abc import Callable

    from backup_vm.jobs.indexing import Names

__all__ = ["Change", "Version", "VolumeFiles"]


class VolumeFiles:
    """Sessions of one volume, opened when they are wanted, and read by ``parser``. ``partition``:
    which one of the image, None for the only one that can be read.
    """

    def __init__(
        self, contents: Contents, volume: Named, partition: int | str | None, parser: Parser
    ) -> None:
        self._contents, self._volume, self._partition = contents, volume, partition
        self._keys = contents.needed_keys()
        self._parser, self._cache = parser, ChunkCache()
        self._reader = PackReader(contents.archive.storage)
        # opened, and rebuilt if need be, before the first thread comes
        contents.archive.catalog.count()

    def __enter__(self) -> "VolumeFiles":
        return self

    def __exit__(self, *what: object) -> None:
        self._reader.__exit__()

    def spoilt(self, session: Session) -> list[str]:
        """What is to be said of a session before it is opened: see Contents.spoilt."""
        return self._contents.spoilt([(self._volume, session)])

    def find(self, wanted: str) -> Session:
        """One of the volume's sessions, see Contents.find."""
        return self._contents.find(self._volume, wanted)

    def unread(self) -> list[str]:
        """A line for each session of the volume of which nothing can be read."""
        return self._contents.unread(self._volume)

    def names(self, warn: "Callable[[str], None]") -> "Names":
        """The volume's indexes of names."""
        from backup_vm.jobs.indexing import Names

        return Names(self._contents, self._volume, self._partition, warn)

    def open(self, session: Session, watch: bool = False) -> Side:
        """One session. Raises DamagedError, FileSystemError."""
        archive, name = self._contents.archive, self._volume.name
        image = self._contents.image(self._volume, session)
        lazy = LazyImage(archive, image, self._keys, name, self._cache, self._reader)
        title = f"{name} at {session.name}"
        return Side(SessionFiles(self._parser, lazy, title, self._partition, watch), image)

    def history(self, path: bytes, sessions: list[Session], names: "Names") -> "list[Version]":
        """The sessions in which a file changed, the oldest first; of sessions in which none of its
        chunks and of those that tell of it differ from those before, nothing is read, nor of those
        whose index of names says that nothing of it changed.
        """
        from backup_vm.jobs.finding import FollowedPath, unchanged

        history, found, followed, before = History(path), [], FollowedPath(path), None
        for session, step in names.steps(sessions, followed.query):
            there = followed.at(step)
            if unchanged(before, there):
                continue
            before = there
            if history.untouched(self._contents.image(self._volume, session)):
                continue
            what, now = history.next(self.open(session, watch=True))
            if what:
                found.append(Version(session.name, what, now))
        return found
