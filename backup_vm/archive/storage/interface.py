# SPDX-License-Identifier: GPL-2.0-or-later
"""What an archive's files can be asked for, wherever they are: by two interfaces, for the files of
the archive itself and for those of this machine alone.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, Protocol

from backup_vm.errors import CannotLockError
from backup_vm.rate import Rate

if TYPE_CHECKING:
    from backup_vm.archive.lease_files import Locks
    from backup_vm.archive.storage.vault import Vault

TEMPORARY = ".tmp"
LOCK = "archive.lock"
WANTED = "archive.wanted"
"""See archive.storage.giving_way."""
UNSEEN = f"{0:010d}-{0:032x}.session"
"""The file that stands for all the sessions of a volume whose folder cannot be looked into: it
cannot be read either.
"""
WHOLE = 64 << 20
"""Bytes at most of a file that is read as one."""


class NewFile(Protocol):
    """A file being written; it has its name only after ``finish``."""

    size: int

    def write(self, *parts: bytes | memoryview) -> None:
        """Append."""

    def finish(self) -> None:
        """Make it durable under its name."""

    def abandon(self) -> None:
        """Remove what was written."""


class Reader(Protocol):
    """A file to read from here and there."""

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from ``offset`` on, fewer at the file's end."""

    def close(self) -> None:
        """End."""


class Files(Protocol):
    """Files to read and remove, by names with slashes.

    What is no regular file there (a link, a FIFO, a folder) is DamagedError from every method that
    opens it, as is a file that cannot be read; nothing waits for it, and no link is followed.
    """

    def close(self) -> None:
        """Let go of what is open; it is opened again when needed."""

    def describe(self, name: str = "") -> str:
        """The place of a file, or of the archive, for people."""

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""

    def names(self, folder: str, suffix: str) -> list[str]:
        """Names of the files two levels below ``folder`` that end in ``suffix``, sorted."""

    def size(self, name: str) -> int:
        """Bytes of a file."""

    def read(self, name: str, limit: int = WHOLE) -> bytes:
        """A whole (small) file; raise FileNotFoundError, and DamagedError when it is larger than
        ``limit``.
        """

    def open(self, name: str) -> BinaryIO:
        """A file to read here and there, the file itself or a local copy; raise
        FileNotFoundError.
        """

    def local(self, name: str) -> Path:
        """A local path of it, of the file itself or a copy. Prefer ``open``: what a path leads to
        may change.
        """

    def reader(self, name: str) -> Reader:
        """Open a file; raise FileNotFoundError."""

    def remove(self, *names: str) -> None:
        """Remove files durably, in this order; raise ForbiddenError where that is not allowed."""


class Workspace(Files, Protocol):
    """The files of this machine alone: catalog, partial sessions, locks, scratch."""

    def lock(self, shared: bool) -> int | None:
        """Keep others away, writers (shared) or all; returns a descriptor to close, None where
        nothing can be written.
        """

    def descriptor(self, name: str, create: bool = False) -> int:
        """One to read and write a file; raise FileNotFoundError, or with ``create`` make it."""

    def database(self, name: str) -> Path:
        """The path of a database of this machine alone, for SQLite; raise DamagedError for what it
        must not be let near.
        """

    def discard(self, name: str) -> None:
        """Take a database and its journal out of the way, whatever they are."""

    def scratch(self) -> IO[bytes]:
        """A temporary file without a name, on a disk: it may be large, and /tmp is often memory."""

    def clean(self) -> None:
        """Remove scratch files whose name could not be taken from them: the run died, or the disk
        failed, where there are none without a name.
        """

    def refusal(self) -> OSError | None:
        """What keeps files from being written here now, found out by a try; None if nothing."""


class Storage(Files, Protocol):
    """The files of one archive. ``uploads``: how many packs may be on their way at once;
    ``readers``: how many small reads at once are quicker than one after another; ``pack_size``:
    bytes of a pack.

    ``workspace``: what belongs to this machine alone; ``elsewhere``: whether that is apart from the
    archive, so that other machines do not see it. ``check`` is called before anything is written,
    and raises what forbids it: a lease that is lost. ``rate``: what whoever reads or writes chunks
    must keep to. ``vault``: what keeps files from being removed for a time, once ``protect`` was
    called. ``archive``: the archive's id, once it is known; then no notes of another one are
    believed.
    """

    uploads: int
    readers: int
    pack_size: int
    elsewhere: bool
    check: Callable[[], None]
    rate: Rate = Rate()
    workspace: Workspace
    vault: "Vault | None" = None
    archive: bytes = b""

    def protect(self, retention: int) -> None:
        """Keep what is stored from now on from being removed, for so many seconds each; raise
        CannotLockError where that is impossible, SparsebakError.
        """
        raise CannotLockError

    def prepare(self) -> None:
        """Make the place for a new archive; raise SparsebakError where there is something
        already.
        """

    def locks(self) -> "Locks":
        """The files by which writers on all machines keep each other away."""

    def refresh(self) -> None:
        """Forget what was seen of the store: another machine may have written to it."""

    def writable(self) -> bool:
        """Whether files can be written at all, as far as that is known."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of each file two levels below ``folder``, in no order; -1 of what is no regular
        file.
        """

    def stamps(self, folder: str) -> dict[str, tuple[int, str]]:
        """As ``sizes``, each with a text that is another one when the file was written again, and
        is empty where the place tells nothing by which to know that.
        """

    def written(self, folder: str) -> dict[str, float]:
        """Names of the files directly in a folder, and when each was written last, in seconds by
        the store's clock; as it is at this moment.
        """

    def unreadable(self) -> list[str]:
        """Names of other programs' files of which a listing tells, and that are none here."""

    def ages(self, names: Iterable[str]) -> dict[str, float]:
        """Seconds since each of these was written, by the store's own clock, about a minute off;
        without those of which that is not known.
        """

    def allocated(self, name: str) -> int:
        """Bytes that a file takes up, holes left out."""

    def has_holes(self, name: str) -> bool:
        """Whether a file has holes, as far as the place tells."""

    def fetch(self, names: list[str]) -> None:
        """Have local copies of these at hand, got all at once where that is quicker."""

    def remove_all(self, names: Iterable[str]) -> None:
        """Remove files in any order, several at once where that is quicker."""

    def create(self, name: str) -> NewFile:
        """Begin a file."""

    def write(self, name: str, *parts: bytes, mode: int = 0o644) -> None:
        """Write a small file at once, atomically."""

    def clean(self) -> None:
        """Remove what a run that died has left half written."""

    def punch(self, name: str, ranges: list[tuple[int, int]]) -> bool:
        """Give the space of (offset, length) ranges back; they read as zeros then. False where that
        is impossible.
        """

    def sync(self) -> None:
        """Make what ``punch`` did durable."""

    def capacity(self) -> int | None:
        """Bytes of the whole disk; None where nobody knows."""

    def free(self) -> int | None:
        """Bytes that can still be written; None where nobody knows."""
